"""From a recipe to calibration images and a score for an exported network."""

from __future__ import annotations

import dataclasses

import detection_folders
import numpy as np
import pytest
from PIL import Image

from ppcls.deploy.package import InputSpec, Manifest
from ppcls.engine.build import Session
from ppcls.engine.calibrate import build_evaluate, calibration_inputs
from ppcls.engine.config import Recipe
from ppcls.utils.errors import ConfigError, DataError

DECODE = {"DecodeImage": {"to_rgb": True, "channel_first": False}}
NORMALIZE = {
    "NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5] * 3, "std": [0.5] * 3, "order": "hwc"}
}
FLOATS = Manifest(
    task="classification",
    arch="tiny",
    class_num=4,
    input=InputSpec(shape=[None, 3, 8, 8]),
    output="logits",
    transform_ops=[DECODE, NORMALIZE],
)
BYTES = dataclasses.replace(
    FLOATS,
    input=InputSpec(shape=[None, 8, 8, 3], layout="NHWC", dtype="uint8"),
    transform_ops=[DECODE],
)
DETECTOR = Manifest(
    task="detection",
    arch="tiny",
    class_num=4,
    input=InputSpec(shape=[None, 3, 32, 32]),
    output="detections",
    transform_ops=detection_folders.EVAL_OPS,
)


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """20 gray images of 8x8 whose brightness is 10 times their number; the class is its rest by 4.

    Training would turn them into noise.
    """
    lines = []
    for number in range(20):
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png {number % 4}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    dataset = {
        "name": "ImageNetDataset",
        "image_root": str(tmp_path),
        "cls_label_path": str(tmp_path / "list.txt"),
    }
    augmented = [DECODE, {"RandFlipImage": {"flip_code": 1}}, {"ResizeImage": {"size": [5, 5]}}]
    section = {"sampler": {"batch_size": 6}, "loader": {"num_workers": 0}}
    return Recipe.parse(
        {
            "Arch": {"name": "Tiny", "class_num": 4},
            "DataLoader": {
                "Train": {"dataset": {**dataset, "transform_ops": augmented}, **section},
                "Eval": {"dataset": {**dataset, "transform_ops": augmented}, **section},
            },
        },
        "a test",
    )


def numbers(inputs):
    return [int(image.max()) // 10 for (image,) in inputs]


def test_calibration_images_are_whole_training_images_as_the_network_takes_them(recipe):
    (image,) = next(calibration_inputs(recipe, FLOATS))
    assert (image.shape, image.dtype) == ((1, 3, 8, 8), np.float32)
    assert image.min() >= -1
    (pixels,) = next(calibration_inputs(recipe, BYTES))
    assert (pixels.shape, pixels.dtype) == ((1, 8, 8, 3), np.uint8)
    np.testing.assert_allclose((pixels / 255 - 0.5) / 0.5, image.transpose(0, 2, 3, 1), atol=1e-6)


def test_the_choice_depends_on_the_seed_alone_and_takes_no_image_twice(recipe):
    chosen = numbers(calibration_inputs(recipe, BYTES, 7))
    assert chosen == numbers(calibration_inputs(recipe, BYTES, 7))
    assert len(set(chosen)) == 7
    everything = numbers(calibration_inputs(recipe, BYTES, 300))
    assert everything[:7] == chosen and sorted(everything) == list(range(20))
    other = dataclasses.replace(recipe, Global=dataclasses.replace(recipe.Global, seed=1))
    assert numbers(calibration_inputs(other, BYTES, 300)) != everything


def test_the_score_is_top1_over_the_evaluation_images(recipe):
    evaluate, name = build_evaluate(Session(recipe, "cpu"), BYTES)

    def infer(images):
        """Right for all but those of class 3."""
        assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 3)
        number = images[:, 0, 0, 0] // 10
        return [np.eye(4, dtype=np.float32)[np.minimum(number % 4, 2)]]

    assert name == "top1"
    assert evaluate(infer) == evaluate(infer) == 0.75


def test_no_calibration_images_is_one_sentence(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"^DataLoader.Train: expected a section whose images c"):
        none = dataclasses.replace(recipe.DataLoader, Train=None)
        calibration_inputs(dataclasses.replace(recipe, DataLoader=none), FLOATS)
    with pytest.raises(ConfigError, match=r"^DataLoader.Eval: expected a section whose images h"):
        none = dataclasses.replace(recipe.DataLoader, Eval=None)
        build_evaluate(Session(dataclasses.replace(recipe, DataLoader=none), "cpu"), FLOATS)
    (tmp_path / "list.txt").unlink()
    with pytest.raises(DataError, match=r"^DataLoader.Train: expected images to calib.*list\.txt"):
        calibration_inputs(recipe, FLOATS)


def test_a_detector_gets_sizes_and_is_scored_by_its_metric(tmp_path):
    pytest.importorskip("pycocotools")
    dataset = {"name": "COCODataset", **detection_folders.write_coco(tmp_path)}
    section = {
        "dataset": {**dataset, "transform_ops": detection_folders.TRAIN_OPS},
        "sampler": {"batch_size": 3},
        "loader": {"num_workers": 0},
    }
    recipe = Recipe.parse(
        {
            "Global": {"task": "detection", "image_shape": [3, 32, 32]},
            "Arch": {"name": "Tiny", "class_num": 4},
            "DataLoader": {"Train": section, "Eval": section},
            "Metric": {"Eval": [{"COCOMetric": {}}]},
        },
        "a test",
    )
    found = list(calibration_inputs(recipe, DETECTOR))
    assert {image.shape for image, _ in found} == {(1, 3, 32, 32)}
    assert {tuple(size[0]) for _, size in found} >= {(40.0, 30.0), (30.0, 40.0), (50.0, 20.0)}

    evaluate, name = build_evaluate(Session(recipe, "cpu"), DETECTOR)
    truth = {(40, 30): [1, 4, 3, 23, 17]}  # category 2 is class 1: the one found, of four boxes

    def infer(images, sizes):
        counts, rows = [], []
        for width, height in sizes.astype(int).tolist():
            boxes = [truth[width, height]] if (width, height) in truth else []
            rows += [[box[0], 0.9, *box[1:]] for box in boxes]
            counts.append(len(boxes))
        return [np.array(rows, np.float32).reshape(-1, 6), np.array(counts, np.int32)]

    assert name == "AP"
    assert 0 < evaluate(infer) < 1
    truth.clear()
    assert evaluate(infer) == 0
