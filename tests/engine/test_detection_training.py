"""Detection training does not depend on how a batch is cut into steps and processes."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from detection_folders import EVAL_OPS, write_coco
from paddle import nn
from tiny_run import MOMENTUM, arrays, records, trainer

from ppcls.data.datasets import COCODataset
from ppcls.engine.detection import DetectionTask
from ppcls.loss.multibox import MultiBoxLoss

sys.path.append(str(Path(__file__).parents[1] / "end_to_end"))
import running  # noqa: E402  starts real processes

CLASSES = 4
# Every fourth prior is small: images differ in how many of them match.
PRIORS = [[x, y, side, side] for x in (0.3, 0.6) for y in (0.4, 0.7) for side in (0.2, 0.6)]


class TinyDetector(nn.Layer):
    """Offsets and scores from the image's mean colours, in float64, without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.class_num = CLASSES
        self.loc = nn.Linear(3, 4 * len(PRIORS))
        self.conf = nn.Linear(3, CLASSES * len(PRIORS))
        rng = np.random.default_rng(0)
        for layer in (self.loc, self.conf):
            start = rng.standard_normal(layer.weight.shape).astype("float32")
            layer.weight.set_value(paddle.to_tensor(start / 8))
        self.to(dtype="float64")

    @property
    def priors(self):
        return paddle.to_tensor(PRIORS)

    def forward(self, x):
        colours = x.astype("float64").mean([2, 3]) / 64
        shape = [x.shape[0], len(PRIORS), -1]
        return self.loc(colours).reshape(shape), self.conf(colours).reshape(shape)


def train(folder, batch_size, update_freq):
    """Train on four images, one of them without a box; return the weights."""
    arguments = write_coco(folder / "coco")
    model = TinyDetector()
    shape = [3, 32, 32]
    run = trainer(
        folder / "run",
        model,
        dataset=COCODataset(transform_ops=EVAL_OPS, **arguments),
        batch_size=batch_size,
        update_freq=update_freq,
        optimizer=MOMENTUM,
        task=functools.partial(DetectionTask, MultiBoxLoss(), 1.0, image_shape=shape),
        image_shape=shape,
        epochs=3,
        eval_during_train=False,
    )
    run.fit()
    return arrays(model)


SCRIPT = """\
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from ppcls.utils import distributed, runtime
runtime.import_paddle()
import numpy as np
from ppcls.engine import parallel
from test_detection_training import train

parallel.start()
for batch_size, update_freq in ((2, 1), (1, 2)):
    folder = Path(f"{{distributed.rank()}}-{{batch_size}}")
    np.savez(f"{{folder}}.npz", **train(folder, batch_size, update_freq))
parallel.stop()
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights and loss of one process that takes all four images at once."""
    folder = tmp_path_factory.mktemp("whole")
    weights = train(folder, 4, 1)
    start = arrays(TinyDetector())
    assert all(np.abs(weights[name] - value).max() > 1e-3 for name, value in start.items())
    return weights, records(folder / "run", "train")[0]["loss"]


def check(found, whole):
    for name, value in whole[0].items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(("batch_size", "update_freq"), [(2, 2), (1, 4), (3, 2)])
def test_accumulation_divides_by_the_positives_of_all_its_steps(
    tmp_path, whole, batch_size, update_freq
):
    """Not by each step's own, of which the image without a box has none."""
    check(train(tmp_path, batch_size, update_freq), whole)


def test_two_processes_divide_by_the_positives_of_both(tmp_path, whole):
    script = tmp_path / "run.py"
    tests = Path(__file__).parents[1]
    script.write_text(SCRIPT.format(path=[*map(str, (running.ROOT, tests, tests / "engine"))]))
    options = ("--nproc_per_node", 2, "--master", f"127.0.0.1:{running.free_port()}")
    running.succeeded(running.finish(running.start(tmp_path, *running.launcher(*options), script)))
    for name in ("0-2", "1-2", "0-1", "1-1"):
        with np.load(tmp_path / f"{name}.npz") as file:
            check(file, whole)
    # The loss in the log is that of both processes' positives, too.
    assert records(tmp_path / "0-2" / "run", "train")[0]["loss"] == pytest.approx(whole[1])
