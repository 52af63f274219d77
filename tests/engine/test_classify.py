"""Names, lists and images of `tools/infer.py`; the tool itself is run in `end_to_end`."""

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image

from ppcls.data.transforms import build_transforms
from ppcls.engine.classify import (
    _load,
    _packaged,
    _scores,
    _transforms,
    list_images,
    read_class_names,
)
from ppcls.engine.config import Recipe
from ppcls.engine.precision import Precision
from ppcls.utils.errors import DataError, JobError


def test_label_files_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("0 zero\n1 one, two\n", encoding="utf-8-sig")
    assert read_class_names(path) == {0: "zero", 1: "one, two"}


@pytest.mark.parametrize("line", ["zero", "0", "² two", "-1 minus"])
def test_a_malformed_label_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "names.txt"
    path.write_text(f"0 zero\n{line}\n")
    with pytest.raises(DataError, match=r"names\.txt:2: expected 'id name'"):
        read_class_names(path)


def test_the_names_of_imagenet_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = read_class_names(_packaged("ppcls/utils/imagenet1k_label_list.txt"))
    assert len(names) == 1000 and names[0].startswith("tench")


def test_images_of_a_folder_and_of_a_list(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.JPG", ".hidden.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="PNG")
    (tmp_path / "list.txt").write_text("b.png\n\nsub/a.JPG\n", encoding="utf-8-sig")
    found = [tmp_path / "b.png", tmp_path / "sub/a.JPG"]
    assert list_images(tmp_path) == found
    assert list_images(tmp_path / "list.txt") == found
    with pytest.raises(DataError, match="none.png: no such image"):
        list_images(tmp_path / "none.png")


@pytest.mark.parametrize("last", [[], ["ToCHWImage"], [{"ToCHWImage": None}], [{"ToCHWImage": {}}]])
def test_images_end_channels_first_however_it_is_written(tmp_path, last):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    arch = {"name": "HarDNet39_ds"}
    infer = {"transforms": [{"DecodeImage": {"backend": "pil"}}, *last]}
    recipe = Recipe.parse({"Arch": arch, "Infer": infer}, "test")
    assert _load(tmp_path / "a.png", _transforms(recipe)).shape == (3, 4, 6)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    transforms = build_transforms([{"DecodeImage": {"backend": "pil"}}], "Infer.transforms")
    with pytest.raises(DataError, match=r"broken\.png: cannot decode the image"):
        _load(path, transforms)


def test_scores_that_are_not_finite_are_no_result():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = [np.ones([3, 2, 2], np.float32)]
    assert _scores(model, images, Precision(None, "cpu")).sum() == pytest.approx(1.0)
    model[1].weight.set_value(paddle.full([12, 3], float("nan")))
    with pytest.raises(JobError, match="not finite"):
        _scores(model, images, Precision(None, "cpu"))
