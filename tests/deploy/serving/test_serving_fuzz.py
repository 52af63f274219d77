"""Three hundred hostile requests: each gets 4xx in one sentence, and the server stays as it was."""

import collections
import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from running_service import running
from serving_fakes import FakeEngine, picture

SCRIPTS = str(Path(__file__).resolve().parents[3] / "scripts")
sys.path.append(SCRIPTS)
hostile = importlib.import_module("_hostile_requests")
sys.path.remove(SCRIPTS)

COUNT, SEED = 312, 20


def sentence(answer):
    """What an answer says when it refuses; it must be JSON with one line."""
    body = answer.partition(b"\r\n\r\n")[2].decode()
    error = json.JSONDecoder().raw_decode(body)[0]["error"]  # another answer may follow
    assert error and "\n" not in error and len(error) < 400
    return error


def test_hostile_requests():
    with running(FakeEngine(), max_bytes=300_000, max_images=4, max_pixels=4_000_000) as service:
        limits = service.ask("GET", "/metadata").content["limits"]
        wrong, seen = [], collections.Counter()
        for case in hostile.hostile_requests(COUNT, SEED, limits):
            status, answer = hostile.exchange(("127.0.0.1", service.port), case.data)
            seen[status] += 1
            if not case.is_right(status) or (status != 200 and not sentence(answer)):
                wrong.append((case.name, status, answer[-300:], case.data[:200]))
        assert wrong == []
        assert {400, 413, 415} < set(seen) and seen[200] < COUNT / 10
        reply = service.post(picture(255), "image/png")
        assert reply.content["images"][0]["label_names"][0] == "white"
        assert service.service.images.taken == service.service.bytes.taken == 0
