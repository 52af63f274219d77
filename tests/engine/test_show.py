"""scripts/show_batch.py: the batch a training sees, pixels restored, labels in words."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from detection_folders import COCO_IMAGES, EVAL_OPS, write_coco
from PIL import Image

from ppcls.data.loader import build_train_loader
from ppcls.engine.config import load_recipe
from ppcls.engine.draw import contact_sheet
from ppcls.engine.show import label_lines, load_batch, make_tiles, names_of, restore_pixels

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "show_batch.py"
NORMALIZE = {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5, 0.4, 0.3], "order": ""}}
MIX = [{"CutmixOperator": {"alpha": 1.0}}]
COUNT, SIDE = 11, 12


def main(*arguments):
    spec = importlib.util.spec_from_file_location("show_batch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


def write_recipe(root, train, evaluation=None, **sections):
    split = {"sampler": {"batch_size": 4}, "loader": {"num_workers": 3}}
    shuffled = {**split, "sampler": {"batch_size": 4, "shuffle": True}}
    loaders = {"Train": {"dataset": train, **shuffled}}
    loaders["Eval"] = {"dataset": evaluation or train, **split}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"DataLoader": loaders, **sections}))
    return str(root / "recipe.yaml")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def recipe(tmp_path, pixels):
    """Eleven images of three classes, mixed in training."""
    for number, image in enumerate(pixels):
        folder = tmp_path / "images" / ("cat", "dog", "owl")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    data = {
        "name": "ImageFolderDataset",
        "image_root": str(tmp_path / "images"),
        "transform_ops": [{"DecodeImage": {"to_rgb": False}}, NORMALIZE],
    }
    mixed = {**data, "batch_transform_ops": MIX}
    arch = {"name": "HarDNet39_ds", "class_num": 3}
    return write_recipe(tmp_path, mixed, data, Arch=arch, Global={"seed": 3})


def test_evaluation_shows_the_files_pixels(recipe, pixels):
    """BGR and normalised for the network; restored exactly, in the third batch too."""
    parsed, _ = load_recipe(recipe)
    dataset, batch = load_batch(parsed, "Eval", 1, 2)
    assert batch.indices.tolist() == [8, 9, 10]
    found = restore_pixels(batch.images.numpy(), dataset)
    order = sorted(range(COUNT), key=lambda number: (number % 3, number))
    assert np.array_equal(found, pixels[order[8:]])
    tiles = make_tiles(batch, dataset, names_of(dataset, parsed), 2)
    assert [tile.caption for tile in tiles] == [["owl"], ["owl"]]
    enlarged = np.asarray(tiles[0].picture)  # squares, so that no pixel is made up
    assert enlarged.shape[0] >= 160 and np.array_equal(enlarged[::14, ::14], found[0])


def test_training_shows_the_batch_of_that_epoch_and_step(recipe):
    parsed, _ = load_recipe(recipe)
    dataset, batch = load_batch(parsed, "Train", 2, 1)
    loader = build_train_loader(parsed.DataLoader.Train, "D", seed=3, class_num=3)
    loader.sampler.set_epoch(1)  # the log calls it 2
    wanted = list(loader)[1]
    assert np.array_equal(batch.images.numpy(), wanted.images.numpy())
    assert np.array_equal(batch.labels.numpy(), wanted.labels.numpy())
    tiles = make_tiles(batch, dataset, ["cat", "dog", "owl"], 4)
    assert any(len(tile.caption) == 2 for tile in tiles)  # two classes in one image
    for tile, shares in zip(tiles, wanted.labels.numpy(), strict=True):
        assert len(tile.caption) == np.count_nonzero(shares)


def test_words_for_labels():
    names = ["cat", "dog", "owl"]
    assert label_lines(np.array(2), names) == ["owl"]
    assert label_lines(np.array([0, 1, 0], np.float32), names) == ["dog"]
    mixed = np.array([0.25, 0, 0.75], np.float32)
    assert label_lines(mixed, names) == ["owl 75.0 %", "cat 25.0 %"]


def test_names_come_from_the_recipe_first(recipe, tmp_path):
    (tmp_path / "names.txt").write_text("0 Katze\n1 Hund\n2 Eule\n")
    option = f"Infer.PostProcess.class_id_map_file={tmp_path / 'names.txt'}"
    parsed, _ = load_recipe(recipe, [option])
    assert names_of(load_batch(parsed, "Eval", 1, 0)[0], parsed) == ["Katze", "Hund", "Eule"]


def test_the_script(recipe, tmp_path, capsys):
    out, result = tmp_path / "sheet.jpg", tmp_path / "r.json"
    arguments = ["-c", recipe, "--out", out, "--images", 3, "--columns", 2, "--json", result]
    assert main(*arguments) == 0
    assert "sheet.jpg: 3 of 4 images" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.format == "JPEG" and sheet.width == 8 + 2 * (168 + 8)
    images = json.loads(result.read_text())["images"]
    assert len(images) == 3 and images[0]["image"].endswith(".png") and images[0]["label"]


def test_the_script_sees_what_a_run_does(recipe, tmp_path, capsys):
    """The images of `Global.data_dir`, and in evaluation those of `Global.test_size`."""
    own = tmp_path / "own"
    for name in ("ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE)).save(own / name)
    out, result = tmp_path / "sheet.png", tmp_path / "r.json"
    options = ["--split", "Eval", "--out", out, "--json", result, "-o", f"Global.data_dir={own}"]
    resize = "DataLoader.Eval.dataset.transform_ops=[DecodeImage: null, ResizeImage: {size: 200}]"
    assert main("-c", recipe, *options, resize, "Global.test_size=300") == 0
    shown = json.loads(result.read_text())["images"]
    assert [image["label"] for image in shown] == [["ant"], ["bee"]]
    with Image.open(out) as sheet:
        assert 600 < sheet.width < 700


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--step", "3"], "--step: expected a number from 0 to 2, got 3"),
        (["--epoch", "0"], "--epoch: expected 1 or more, got 0"),
        (["--images", "0"], "--images: expected 1 or more, got 0"),
        (["--out", "sheet.gif"], "sheet.gif: expected a name that ends in .png, .jpg, .jpeg"),
        (["-o", "DataLoader.Eval=null", "--split", "Eval"], "DataLoader.Eval: expected a section"),
    ],
)
def test_mistakes(recipe, arguments, line, capsys):
    assert main("-c", recipe, *arguments) == 2
    assert line in capsys.readouterr().err


def test_boxes_of_a_detector(tmp_path):
    data = {"name": "COCODataset", **write_coco(tmp_path), "transform_ops": EVAL_OPS}
    sections = {"Global": {"task": "detection"}, "Arch": {"name": "SSD_HarDNet68", "class_num": 4}}
    parsed, _ = load_recipe(write_recipe(tmp_path, data, **sections))
    dataset, batch = load_batch(parsed, "Eval", 1, 0)
    names = names_of(dataset, parsed)
    assert names == ["background", "cat", "dog", "bird"]
    tiles = make_tiles(batch, dataset, names, 4)
    captions = {image: tile.caption for image, tile in zip(dataset.image_ids, tiles, strict=True)}
    assert captions == {3: ["1 box"], 4: ["3 boxes"], 5: ["2 boxes"], 9: ["0 boxes"]}
    assert set(captions) == set(COCO_IMAGES)
    empty = list(dataset.image_ids).index(9)
    plain = restore_pixels(batch.images.numpy(), dataset)
    for number, tile in enumerate(tiles):
        shown = np.asarray(tile.picture)[::5, ::5]
        assert (number == empty) == np.array_equal(shown, plain[number])


def test_captions_of_a_sheet():
    """Beneath their cells, in rows as high as the longest needs; what is too long is cut."""
    grey = np.full((30, 40, 3), 127, np.uint8)
    plain = contact_sheet([grey, grey], 2, (40, 30), gap=4)
    captions = [["cat"], ["a very long name indeed", "dog"]]
    sheet = contact_sheet([grey, grey], 2, (40, 30), gap=4, captions=captions)
    assert sheet.width == plain.width and sheet.height - plain.height >= 2 * 12
    ink = np.asarray(sheet.convert("L"))[34:] < 100
    assert ink[:, 4:44].any() and ink[:, 48:88].any()
    assert not ink[:, 44:48].any() and not ink[:, :4].any() and not ink[:, 88:].any()
