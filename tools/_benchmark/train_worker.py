"""One contestant of the case `train` in a process of its own.

    python train_worker.py JSON-DESCRIPTION

It speaks as `worker` does; a measurement is a step: the milliseconds of data, forward, backward and
optimizer.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from _benchmark.worker import answers_alone, serve  # noqa: E402

CLASSES = 1000
LEARNING_RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
Batch = tuple[np.ndarray, np.ndarray]


def batches(shape: list[int]) -> Iterator[Batch]:
    """A few batches of noise, again and again: images [N, 3, H, W] float32 and labels [N]."""
    random = np.random.default_rng(0)
    few = [
        (
            random.standard_normal(shape).astype(np.float32),
            random.integers(0, CLASSES, shape[:1]),
        )
        for _ in range(4)
    ]
    return itertools.cycle(few)


def timed(events: list[Callable[[], Any]]) -> list[float]:
    """Milliseconds of each event of a step."""
    marks = [time.perf_counter()]
    for event in events:
        event()
        marks.append(time.perf_counter())
    return [1000 * (after - before) for before, after in itertools.pairwise(marks)]


class Step:
    """A step of `model`, a classifier; `functional` is the module that has its cross-entropy."""

    model: Any
    functional: Any

    def __call__(self) -> list[float]:
        return timed([self.data, self.forward, self.backward, self.update])

    def data(self) -> None:
        """Make `x` and `y` tensors of the next batch."""
        raise NotImplementedError

    def forward(self) -> None:
        self.loss = self.functional.cross_entropy(self.model(self.x), self.y)

    def backward(self) -> None:
        self.loss.backward()

    def update(self) -> None:
        """Update the weights, and forget the gradients."""
        raise NotImplementedError


class PaddleStep(Step):
    """A step of a classifier of Paddle's."""

    def __init__(self, model: Any, shape: list[int]) -> None:
        import paddle

        self.functional = paddle.nn.functional
        self.model, self.batches = model, batches(shape)
        self.optimizer = paddle.optimizer.Momentum(
            LEARNING_RATE, MOMENTUM, parameters=model.parameters(), weight_decay=DECAY
        )
        model.train()

    def data(self) -> None:
        import paddle

        self.x, self.y = (paddle.to_tensor(array) for array in next(self.batches))

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.clear_grad()


class TorchStep(Step):
    """A step of its twin in PyTorch."""

    def __init__(self, model: Any, shape: list[int]) -> None:
        import torch

        self.functional = torch.nn.functional
        self.model, self.batches = model.train(), batches(shape)
        self.optimizer = torch.optim.SGD(
            model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=DECAY
        )

    def data(self) -> None:
        import torch

        self.x, self.y = (torch.from_numpy(array) for array in next(self.batches))

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def open_ours(spec: dict[str, Any]) -> PaddleStep:
    """This project's network, in a process as its tools start it."""
    from ppcls.utils import runtime

    runtime.import_paddle()
    from ppcls.arch import create_model
    from ppcls.ops.accelerate import accelerate

    model = create_model(spec["network"], class_num=CLASSES, recompute=spec["recompute"])
    accelerate(model)
    runtime.settle_memory(thrifty=spec["recompute"])
    return PaddleStep(model, spec["shape"])


def open_wheel(spec: dict[str, Any]) -> PaddleStep:
    """The network of PaddleClas's wheel, in the process as the wheel starts it."""
    from ppcls.arch import zoo

    return PaddleStep(zoo.wheel_builder(spec["network"])(), spec["shape"])


def open_torch(spec: dict[str, Any]) -> TorchStep:
    """The twin in PyTorch, eager."""
    import torch

    from _benchmark.torch_twin import build
    from ppcls.arch.backbone.hardnet_plan import VARIANTS

    torch.set_num_threads(spec["threads"])
    return TorchStep(build(VARIANTS[spec["network"]], CLASSES), spec["shape"])


OPENERS: dict[str, Callable[[dict[str, Any]], Callable[[], list[float]]]] = {
    "ours": open_ours,
    "wheel": open_wheel,
    "torch": open_torch,
}


def main() -> int:
    answers = answers_alone()
    spec = json.loads(sys.argv[1])
    serve(spec, answers, OPENERS[spec["kind"]](spec))
    return 0


if __name__ == "__main__":
    sys.exit(main())
