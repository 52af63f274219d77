"""`Global.data_dir`: how a folder is read, what a recipe becomes, and what cannot be used."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from ppcls.engine.build import _check_same_classes
from ppcls.engine.config import Recipe, load_recipe
from ppcls.engine.names import class_names
from ppcls.engine.own_images import find_images, with_own_images
from ppcls.utils.errors import ConfigError, DataError

FOLDER = Path(__file__).parents[2] / "configs" / "HarDNet"
FINETUNE = FOLDER / "finetune.yaml"


def fill(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return root


def resolve(root, *overrides, recipe=FINETUNE):
    return with_own_images(load_recipe(recipe, [f"Global.data_dir={root}", *overrides])[0])


CLASSES = ("no/0.png", "no/1.png", "1/0.png", "1/1.png", "cat/0.png", "cat/1.png")


@pytest.mark.parametrize("recipe", [FINETUNE, FOLDER / "HarDNet68.yaml"], ids=lambda p: p.stem)
def test_one_key_names_the_images_of_all_tools(tmp_path, recipe, caplog):
    """Also in a recipe with data sets and names of its own."""
    found = resolve(fill(tmp_path, *CLASSES), "Global.val_fraction=0.5", recipe=recipe)
    names = ["1", "cat", "no"]  # text, though YAML has other ideas of two of them
    assert found.class_num == 3 and found.Global.data_dir is None
    post = found.Infer.PostProcess
    assert post.class_names == names and post.topk == 3 and post.class_id_map_file is None
    assert class_names(post, 3) == {0: "1", 1: "cat", 2: "no"}
    for phase, part in (("Train", "train"), ("Eval", "val")):
        dataset = getattr(found.DataLoader, phase).dataset
        assert dataset["transform_ops"][0] == {
            "DecodeImage": {"to_rgb": True, "channel_first": False, "backend": "pil"}
        }
        assert (dataset["image_root"], dataset["part"]) == (str(tmp_path), part)
        assert dataset["class_names"] == names and dataset["val_fraction"] == 0.5
    assert "3 classes ('1', 'cat', 'no'), images: 3 to train with and 3 held out" in caplog.text


def test_a_run_s_recipe_needs_no_folder(tmp_path):
    found = resolve(fill(tmp_path / "own", *CLASSES))
    (tmp_path / "config.yaml").write_text(found.to_yaml(), encoding="utf-8")
    again = load_recipe(tmp_path / "config.yaml")[0]
    assert again.to_mapping() == found.to_mapping()
    assert with_own_images(again) is again
    same = resolve(tmp_path / "own", recipe=tmp_path / "config.yaml")
    assert same.to_mapping() == found.to_mapping()
    other = fill(tmp_path / "other", *(name for name in CLASSES if "cat" not in name))
    with pytest.raises(ConfigError, match="expected the classes of Infer.PostProcess.class_names, "
                       "'1', 'cat', 'no', found '1', 'no'"):  # fmt: skip
        resolve(other, recipe=tmp_path / "config.yaml")


def test_a_teacher_knows_the_classes_of_the_folder(tmp_path):
    """Whatever the recipe says, as of the student; the run's recipe reads back."""
    digits = FOLDER / "HarDNet39_ds_digits_distill.yaml"  # of ten classes
    found = resolve(fill(tmp_path / "own", *CLASSES), recipe=digits)
    assert found.class_num == 3 and found.distillation.network["class_num"] == 3
    (tmp_path / "config.yaml").write_text(found.to_yaml(), encoding="utf-8")
    again = load_recipe(tmp_path / "config.yaml")[0]
    assert again.to_mapping() == found.to_mapping()


def test_train_and_val_are_taken_as_they_are(tmp_path, caplog):
    fill(tmp_path / "train", *CLASSES)
    fill(tmp_path / "val", "no/5.png", "cat/5.png")
    fill(tmp_path / "test", "something/5.png")
    found = resolve(tmp_path)
    sections = found.DataLoader
    assert sections.Train.dataset["image_root"] == str(tmp_path / "train")
    assert sections.Eval.dataset["image_root"] == str(tmp_path / "val")
    assert "part" not in sections.Train.dataset and "part" not in sections.Eval.dataset
    assert sections.Eval.dataset["class_names"] == ["1", "cat", "no"]
    assert f"{tmp_path}/val: no images of the classes '1'" in caplog.text
    assert f"images: 6 to train with and 2 in {tmp_path}/val" in caplog.text


def test_valid_is_another_word_for_val(tmp_path):
    fill(tmp_path / "train", *CLASSES)
    fill(tmp_path / "valid", *CLASSES)
    assert find_images(str(tmp_path)).val == tmp_path / "valid"


def test_labels_mean_the_same_in_training_and_evaluation():
    def loader(names):
        return SimpleNamespace(dataset=SimpleNamespace(class_names=names))

    cats = ["ant", "cat", "dog"]
    for train, evaluation in ((cats, cats), (None, cats), (cats, None)):
        _check_same_classes(loader(train), loader(evaluation))
    for names, message in ((["cat", "dog"], "label 0 to be 'cat' instead of 'ant'"),
                           (["ant", "cat"], "label 2 to be None instead of 'dog'")):  # fmt: skip
        with pytest.raises(DataError, match=f"in the same order, found {message}"):
            _check_same_classes(loader(cats), loader(names))


def test_train_and_val_may_be_classes(tmp_path):
    fill(tmp_path / "vehicles", "train/0.png", "train/1.png", "bus/0.png", "bus/1.png")
    found = find_images(str(tmp_path / "vehicles"))
    assert (found.train, found.class_names) == (tmp_path / "vehicles", ["bus", "train"])
    fill(tmp_path / "train", *CLASSES)  # without val
    assert find_images(str(tmp_path)).val is None


def test_folders_that_cannot_be_used(tmp_path):
    def refused(name, message, *files):
        fill(tmp_path / name, *files)
        with pytest.raises(DataError, match=message):
            find_images(str(tmp_path / name))

    with pytest.raises(DataError, match="^Global.data_dir: expected a folder, got '/nowhere'"):
        find_images("/nowhere")
    refused("flat", "flat: expected one folder per class, found none", "0.png", "1.png")
    refused("one", "one: expected at least 2 classes, a folder each, found 'cat'", "cat/0.png")
    (tmp_path / "hollow" / "dog").mkdir(parents=True)
    refused("hollow", r"hollow/dog: expected images \(.jpg.*found none", "cat/0.png")
    refused("half", "half: expected a folder 'train' with classes beside 'val'", "val/cat/0.png")
    refused(
        "more",
        "val: expected folders of the classes 'cat', 'dog', found 'owl' besides",
        *("train/cat/0.png", "train/dog/0.png", "val/owl/0.png"),
    )
    (tmp_path / "blank" / "val").mkdir(parents=True)
    refused("blank", "val: expected one folder per class", "train/cat/0.png", "train/dog/0.png")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_are_text(tmp_path):
    fill(tmp_path, "cat/0.png", os.fsdecode(b"caf\xe9/0.png"))
    with pytest.raises(DataError, match=r"expected folder names in UTF-8, got b'caf\\xe9'"):
        find_images(str(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "Global.data_dir: expected the folder of your images, found none; type -o Global.da"),
        (["Global.data_dir=x", "Global.task=detection"], "Global.data_dir: expected none with"),
        (["Global.val_fraction=1.0"], r"Global.val_fraction: expected a number in \(0, 1\), got 1"),
        (["Global.val_seed=-1"], "Global.val_seed: expected a number >= 0, got -1"),
        (
            ["Infer.PostProcess.class_names=[a]", "Infer.PostProcess.class_id_map_file=b.txt"],
            "class_names: expected either this or class_id_map_file, got both",
        ),
    ],
)
def test_settings_that_cannot_be_used(overrides, message):
    with pytest.raises(ConfigError, match=message):
        with_own_images(load_recipe(FINETUNE, overrides)[0])


def test_as_many_names_as_classes():
    section = {"PostProcess": {"class_names": ["a", "b"]}}
    post = Recipe.parse({"Arch": {"name": "HarDNet68"}, "Infer": section}, "a.yaml").Infer
    with pytest.raises(
        ConfigError, match=r"class_names: expected 3 names \(Arch.class_num\), got 2"
    ):
        class_names(post.PostProcess, 3)
