"""Detections of two gloo processes against those of one."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ppcls.engine import gather
from ppcls.metric.detection import Detections, no_detections

sys.path.append(str(Path(__file__).parents[1] / "end_to_end"))
import running  # noqa: E402  starts real processes


def made_up(count):
    """Up to 3 detections per image; labels need all 64 bits, one score in four is odd."""
    rng = np.random.default_rng(0)
    result = {}
    for index in range(count):
        k = int(rng.integers(0, 4))
        scores = np.where(rng.random(k) < 0.25, 1e-42, rng.random(k)).astype("float32")
        boxes = rng.standard_normal((k, 4)).astype("float32")
        result[index] = Detections(rng.integers(1, 2**60, k), scores, boxes)
    return result


# What each of two processes has: indices.
SHARES = {
    "alternating": ([8, 2, 0, 4, 6], [1, 3, 5, 7]),
    "idle": (list(range(9)), []),
    "first_idle": ([], [3, 1, 2]),
    "both_idle": ([], []),
    "doubled": ([0, 1, 2], [2, 3, 0]),
}

SCRIPT = """\
import sys
sys.path[:0] = {path!r}
from ppcls.utils import distributed, runtime
runtime.import_paddle()
import numpy as np
from ppcls.engine import gather, parallel
from test_gather import SHARES, made_up

parallel.start()
rank = distributed.rank()
for name, shares in SHARES.items():
    all_of_them = made_up(9)
    own = {{i: all_of_them[i] for i in shares[rank]}}
    arrays = {{}}
    for index, found in gather.gather_detections(own).items():
        arrays |= {{f"{{index}}/{{key}}": v for key, v in found._asdict().items()}}
    np.savez(f"{{name}}.{{rank}}.npz", **arrays)
parallel.stop()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes left what they got: SHARE.RANK.npz."""
    folder = tmp_path_factory.mktemp("gather")
    script = folder / "run.py"
    script.write_text(SCRIPT.format(path=[str(running.ROOT), str(Path(__file__).parent)]))
    options = ("--nproc_per_node", 2, "--master", f"127.0.0.1:{running.free_port()}")
    running.succeeded(running.finish(running.start(folder, *running.launcher(*options), script)))
    return folder


def arrays(detections):
    return {
        f"{index}/{key}": value
        for index, found in detections.items()
        for key, value in found._asdict().items()
    }


@pytest.mark.parametrize("name", list(SHARES))
def test_two_processes_have_what_one_has(folder, name):
    whole = made_up(9)
    wanted = {index: whole[index] for index in {*SHARES[name][0], *SHARES[name][1]}}
    expected = arrays(gather.gather_detections(wanted))
    for rank in range(2):
        with np.load(folder / f"{name}.{rank}.npz") as file:
            result = dict(file)
        assert list(result) == list(expected)
        for key, value in expected.items():
            assert (result[key].dtype, result[key].shape) == (value.dtype, value.shape)
            assert result[key].tobytes() == value.tobytes(), key


def test_one_process_keeps_its_own_in_order():
    whole = made_up(5)
    result = gather.gather_detections({i: whole[i] for i in (3, 0, 4)})
    assert list(result) == [0, 3, 4] and result[3] is whole[3]
    assert gather.gather_detections({}) == {}


def test_the_lowest_rank_decides_on_an_image_two_have(monkeypatch):
    first, second = made_up(9)[3], no_detections()
    packs = [gather._pack({3: first}), gather._pack({3: second, 1: second})]
    monkeypatch.setattr(gather.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(gather, "_exchange", lambda *own: packs)
    result = gather.gather_detections({3: first})
    assert list(result) == [1, 3] and len(result[1].labels) == 0
    assert result[3].labels.tolist() == first.labels.tolist()
