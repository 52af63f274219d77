"""The service with exported networks behind it: its answers are those of the predictor."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("ppcls.deploy.predictor")

from PIL import Image
from running_service import form, running

from ppcls.deploy import Predictor

FOLDER = str(Path(__file__).resolve().parents[1])
sys.path.append(FOLDER)
tiny = importlib.import_module("tiny_export")
sys.path.remove(FOLDER)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of several sizes, the last one dark on the left and bright on the right."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(5)]
    for path, width in zip(paths, (32, 50, 64, 90), strict=False):
        Image.fromarray(rng.integers(0, 256, (40, width, 3), np.uint8)).save(path)
    half = np.zeros((40, 80, 3), np.uint8)
    half[:, 40:] = 240
    Image.fromarray(half).save(paths[-1])
    return paths


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_answers_of_an_exported_network(tmp_path, pictures, task):
    if task == "classification":
        tiny.write_export(tmp_path, tiny.tiny_hardnet(), tiny.CLASSIFIER, ("paddle",))
    else:
        tiny.write_export(tmp_path, tiny.BrightHalves(), tiny.DETECTOR, ("paddle",))
    predictor = Predictor(tmp_path, "paddle", threads=1)
    expected = predictor.predict(pictures)
    with running(predictor, max_batch=4) as service:
        reply = service.post(*form(*[("file", path.name, path.read_bytes()) for path in pictures]))
        assert reply.status == 200, reply
        found = reply.content["images"]
        metadata = service.ask("GET", "/metadata").content
        cut = pictures[0].read_bytes()[:200]
        refusal = service.post(*form(("file", "cut.png", cut)))
    assert metadata["runtime"] == "paddle" and metadata["task"] == task
    assert refusal.status == 400 and refusal.error.startswith("cut.png: cannot decode the image")
    for path, ours, theirs in zip(pictures, found, expected, strict=True):
        assert ours["file_name"] == path.name
        for key in theirs.keys() - {"file_name", "scores", "boxes"}:
            assert ours[key] == theirs[key]
        for key in ("scores", "boxes"):  # a batch may be summed in another order
            np.testing.assert_allclose(ours.get(key, []), theirs.get(key, []), atol=1e-5)
    if task == "detection":
        assert found[-1]["label_names"] == ["right"]
        np.testing.assert_allclose(found[-1]["boxes"], [[40, 0, 80, 40]], atol=1e-3)
