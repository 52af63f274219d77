"""Per-class results and pictures of `tools/eval.py`, on one process and several."""

import logging

import numpy as np
import paddle
import pytest
from PIL import Image
from test_evaluator import logits_of
from tiny_run import CLASSES, TinyImages, evaluator, tiny_net

from ppcls.engine import parallel
from ppcls.engine.class_report import ClassReport
from ppcls.engine.config import Recipe
from ppcls.engine.confusion_picture import MOST_CLASSES, cell_side, draw_confusion
from ppcls.engine.evaluator import Predictions
from ppcls.utils.errors import JobError, UserError


def recipe(class_num=CLASSES, **settings) -> Recipe:
    mapping = {"Global": settings, "Arch": {"name": "x", "class_num": class_num}}
    return Recipe.parse(mapping, "a.yaml")


def kept(dataset, **options):
    made = evaluator(dataset, **options)
    made.keep_predictions = True
    return made


def predictions(count=200, classes=CLASSES, **options):
    rng = np.random.default_rng(count)
    labels, other = rng.integers(0, classes, (2, count))
    return Predictions(labels, np.where(rng.random(count) < 0.3, other, labels), **options)


# What an evaluation keeps


def test_predictions_are_those_of_the_network():
    dataset, model = TinyImages(30, broken={4}, on_error="skip"), tiny_net()
    result = kept(dataset, batch_size=7).evaluate(model)
    dataset.broken = set()
    whole = [i for i in range(30) if i != 4]
    assert result.predictions.labels.tolist() == dataset.labels[whole].tolist()
    expected = logits_of(model, dataset)[whole].argmax(axis=1)
    assert result.predictions.predicted.tolist() == expected.tolist()
    assert (result.predictions.predicted == dataset.labels[whole]).sum() == result.correct["top1"]
    assert evaluator(dataset).evaluate(model).predictions is None


def test_every_image_once_on_any_number_of_processes(monkeypatch):
    dataset, model = TinyImages(3), tiny_net()
    whole = kept(dataset).evaluate(model).predictions
    sent: list[bytes] = []

    def gather(own):
        sent.append(own)
        return list(sent)

    for world_size in (2, 4):  # of four, one has nothing
        sent.clear()
        monkeypatch.setattr(parallel, "gather_bytes", gather)
        for rank in range(world_size):
            run = kept(dataset, batch_size=2, rank=rank, world_size=world_size)
            try:
                found = run.evaluate(model).predictions
            except UserError:  # a rank alone knows of no image
                found = run._predictions()
        assert np.array_equal(found.labels, whole.labels)
        assert np.array_equal(found.predicted, whole.predicted)


def test_what_is_not_finite_is_no_prediction():
    model = tiny_net()
    model.fc.bias.set_value(paddle.full([CLASSES], float("nan")))
    with pytest.raises(JobError, match="not finite"):
        kept(TinyImages(4)).evaluate(model)


# What is written


def test_nothing_is_written_unasked(tmp_path, caplog):
    assert ClassReport.plan(recipe(), per_class=False, picture=None) is None
    report = ClassReport.plan(recipe(), per_class=True, picture=None)
    with caplog.at_level(logging.INFO, "ppcls"):
        written = report.write(predictions(class_names=["a", "b", "c"]))
    assert [row["name"] for row in written["per_class"]] == ["a", "b", "c", "3"]
    assert list(written) == ["mean_class_accuracy", "per_class"]
    assert len(caplog.messages) == CLASSES + 2 and not list(tmp_path.iterdir())


def test_the_picture_the_table_and_the_json_have_the_same_counts(tmp_path):
    found = predictions()
    path = tmp_path / "confusion.png"
    written = ClassReport.plan(recipe(), per_class=False, picture=path).write(found)
    matrix = np.zeros((CLASSES, CLASSES), int)
    np.add.at(matrix, (found.labels, found.predicted), 1)
    again = np.zeros_like(matrix)
    for true, taken, count in written["confusion"]:
        again[true, taken] = count
    table = np.loadtxt(tmp_path / "confusion.csv", delimiter=",", skiprows=1, dtype=int)
    assert np.array_equal(again, matrix) and np.array_equal(table[:, 1:], matrix)
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(draw_confusion(matrix)))


def test_names_of_the_recipe_come_first(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("".join(f"{i} name{i}\n" for i in range(CLASSES)))
    post = {"PostProcess": {"class_id_map_file": str(path)}}
    mapping = {"Arch": {"name": "x", "class_num": CLASSES}, "Infer": post}
    report = ClassReport.plan(Recipe.parse(mapping, "a.yaml"), per_class=True, picture=None)
    rows = report.write(predictions(class_names=["a"] * CLASSES))["per_class"]
    assert [row["name"] for row in rows] == [f"name{i}" for i in range(CLASSES)]


@pytest.mark.parametrize("classes", [1, 3, 40, 100, 1001])
def test_pictures_show_each_class_where_it_is(classes):
    matrix = np.zeros((classes, classes), int)
    matrix[classes - 1, 0] = 5
    matrix[0, 0] += 7
    colors = np.asarray(draw_confusion(matrix)).astype(int)
    cell = cell_side(classes)
    red = np.argwhere(colors[..., 0] - colors[..., 2] > 60)
    blue = np.argwhere(colors[..., 2] - colors[..., 0] > 60)
    assert max(colors.shape[:2]) < 3000
    if classes > 1:
        (top, left), (bottom, _) = blue.min(axis=0), red.max(axis=0)
        assert red[:, 1].min() - left in (0, 1)
        assert abs(bottom - top - cell * classes) <= cell + 1


@pytest.mark.parametrize(
    ("name", "classes", "settings", "message"),
    [
        ("a.jpg", 4, {}, "--confusion .*a.jpg: expected a name that ends in .png"),
        ("none/a.png", 4, {}, "--confusion .*a.png: expected a folder that exists"),
        ("folder.png", 4, {}, "--confusion .*folder.png: expected a file that can be written"),
        ("a.png", MOST_CLASSES + 1, {}, "expected at most 4096 classes, found 4097"),
        ("a.png", 4, {"task": "detection"}, "--confusion: expected none with Global.task: detec"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, name, classes, settings, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=message):
        picture = tmp_path / name
        ClassReport.plan(recipe(classes, **settings), per_class=False, picture=picture)
