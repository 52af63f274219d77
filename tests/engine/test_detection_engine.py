"""Evaluating detectors, and showing what they find."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from detection_folders import EVAL_OPS, VOC_IMAGES, write_coco, write_voc
from paddle import nn

from ppcls.arch.detection.postprocess import PostProcessConfig
from ppcls.data.loader import build_eval_loader
from ppcls.engine.detection import DetectionEvaluator
from ppcls.engine.draw import picture_paths
from ppcls.engine.precision import Precision
from ppcls.metric.detection import COCOMetric, VOCMetric
from ppcls.metric.results import describe_objects
from ppcls.utils.errors import ConfigError, DataError, JobError, UserError


class OneBox(nn.Layer):
    """A detector that finds, with one prior, class `label` in the whole of every image."""

    def __init__(self, class_num: int, label: int = 1, offset: float = 0.0) -> None:
        super().__init__()
        self.class_num = class_num
        self.priors = paddle.to_tensor([[0.5, 0.5, 1.0, 1.0]])
        scores = np.zeros(class_num, np.float32)
        scores[label] = 9.0
        self.register_buffer("scores", paddle.to_tensor(scores + np.float32(offset)))

    def forward(self, x):
        batch = x.shape[0]
        return paddle.zeros([batch, 1, 4]), self.scores.expand([batch, 1, self.class_num])


def voc_loader(root, **options):
    dataset = {"name": "VOCDataset", **write_voc(root), "splits": ["2007 test"], **options}
    section = {"dataset": dataset | {"transform_ops": EVAL_OPS}, "sampler": {"batch_size": 2}}
    return build_eval_loader(section | {"loader": {"num_workers": 0}}, "D.Eval")


def evaluator(loader, metric, **options):
    config = PostProcessConfig(score=0.01)
    return DetectionEvaluator(loader, [metric], config, Precision(None, "cpu"), **options)


def test_a_box_is_judged_and_written(tmp_path):
    judge = evaluator(voc_loader(tmp_path), VOCMetric(), results_dir=tmp_path / "found")
    assert VOC_IMAGES["2007", "test"]["000001"][1][0][0] == "person"
    result = judge.evaluate(OneBox(21, label=15))
    assert result.metrics == {"mAP": 1.0} and result.details["mAP/person"] == 1.0
    line = (tmp_path / "found" / "comp4_det_test_person.txt").read_text().split()
    assert line[0] == "000001" and float(line[1]) > 0.9
    assert judge.evaluate(OneBox(21, label=3)).metrics == {"mAP": 0.0}


@pytest.mark.parametrize("offset", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_no_empty_result(tmp_path, offset):
    judge = evaluator(voc_loader(tmp_path), VOCMetric())
    with pytest.raises(JobError, match="output is not finite"):
        judge.evaluate(OneBox(21, offset=offset))


def test_what_cannot_be_judged_or_written_is_known_before_the_evaluation(tmp_path):
    pytest.importorskip("pycocotools")
    with pytest.raises(ConfigError, match="COCOMetric: expected a data set with a COCO annotation"):
        evaluator(voc_loader(tmp_path), COCOMetric())
    (tmp_path / "names.txt").write_text("person\na/c\n")
    loader = voc_loader(tmp_path, label_list="names.txt")
    evaluator(loader, VOCMetric())
    with pytest.raises(DataError, match="class 'a/c': expected a name that can be part of a file"):
        evaluator(loader, VOCMetric(), results_dir=tmp_path)


def test_one_class_and_fewer_images_than_ranks(tmp_path):
    """A detector of one class and the background; two of three ranks have no image."""
    (tmp_path / "names.txt").write_text("person\n")
    dataset = {"name": "VOCDataset", **write_voc(tmp_path), "splits": ["2007 test"]}
    dataset |= {"label_list": "names.txt", "transform_ops": EVAL_OPS}
    section = {"dataset": dataset, "sampler": {"batch_size": 2}, "loader": {"num_workers": 0}}
    counts = []
    for rank in range(3):
        loader = build_eval_loader(section, "D.Eval", class_num=2, rank=rank, world_size=3)
        judge = evaluator(loader, VOCMetric())
        if len(loader):
            assert judge.evaluate(OneBox(2)).metrics == {"mAP": 1.0}
        else:  # alone, without the other ranks' detections
            with pytest.raises(DataError, match="expected at least one usable image, found none"):
                judge.evaluate(OneBox(2))
        counts.append(len(loader))
    assert counts == [1, 0, 0]


def result(count):
    scores = np.linspace(0.9, 0.1, count).tolist()
    shared = {"file_name": "a.jpg", "scores": scores}
    return shared | {"label_names": ["cat"] * count, "boxes": [[0.4, 1, 2, 3]] * count}


def test_a_line_of_the_log_shows_the_best_and_counts_the_rest():
    assert describe_objects(result(0), 0.5) == "a.jpg: nothing"
    few = describe_objects(result(2), 0.05)
    assert few == "a.jpg: cat 0.900 [0, 1, 2, 3]; cat 0.100 [0, 1, 2, 3]"
    many = describe_objects(result(201), 0.5)
    assert many.count("cat") == 10 and many.startswith("a.jpg: cat 0.900 ")
    assert many.endswith("; cat 0.864 [0, 1, 2, 3] and 91 more")


def test_pictures_never_replace_the_images(tmp_path):
    images = [tmp_path / "a.jpg", tmp_path / "b" / "a.jpg"]
    targets = picture_paths(images, tmp_path / "drawn", "Infer.output_dir")
    assert [targets[image].name for image in images] == ["a.jpg", "a_2.jpg"]
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link", tmp_path / "b" / ".."):
        with pytest.raises(UserError, match=r"Infer.output_dir: .*a.jpg would be written over"):
            picture_paths(images, folder, "Infer.output_dir")


def test_a_coco_set_is_judged_by_its_own_ids(tmp_path):
    pytest.importorskip("pycocotools")
    dataset = {"name": "COCODataset", **write_coco(tmp_path), "transform_ops": EVAL_OPS}
    section = {"dataset": dataset, "sampler": {"batch_size": 3}, "loader": {"num_workers": 0}}
    loader = build_eval_loader(section, "D.Eval", class_num=4)
    found = evaluator(loader, COCOMetric()).evaluate(OneBox(4, label=2))
    # Image 3 is a dog (category 7) from edge to edge. Elsewhere the box is wrong.
    assert found.samples == 4 and found.details["AP/dog"] > 0 and found.details["AP/cat"] == 0
