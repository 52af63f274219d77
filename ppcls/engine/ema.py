"""The exponential moving average of a run's weights, which often scores better than they do.

After every update with the weights w, the average e becomes e + (1 - d) (w - e). Batch norm's
running statistics are averaged alike. The section `EMA` gives d (see `EMAConfig`).

PaddleClas 2.6 has the same average without a warm-up, and writes it into `.pdparams`. Here
`.pdparams` always holds the raw weights, and the average has a file of its own, `.ema.pdparams`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppcls.engine import parallel
from ppcls.engine.config import EMAConfig
from ppcls.engine.rank_state import as_arrays
from ppcls.utils.errors import UserError


class ExponentialMovingAverage:
    """The average of the state of `model`, which begins as the state is now.

    Averages have the dtype of what they average, those of float16 and bfloat16 are float32.
    Whole numbers are not averaged but copied.

    Attributes:
        updates: how many there were.
    """

    def __init__(self, config: EMAConfig, model: nn.Layer) -> None:
        self.config = config
        self.updates = 0
        # Without the hooks of AMP's O2, which hand out float32 copies.
        self._tensors: dict[str, paddle.Tensor] = dict(model.state_dict(use_hook=False))
        self._averages = {name: _copy(tensor) for name, tensor in self._tensors.items()}

    def decay(self) -> float:
        """d of the next update."""
        if not self.config.warmup:
            return self.config.decay
        return min(self.config.decay, (1 + self.updates) / (10 + self.updates))

    @paddle.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now. An update that a loss scaler left out counts too."""
        rate = 1.0 - self.decay()
        for name, tensor in self._tensors.items():
            average = self._averages[name]
            if tensor.is_floating_point():
                # Faster than `lerp_` on a CPU; where both are equal, the average stays as it is.
                average.add_((tensor.astype(average.dtype) - average).scale_(rate))
            else:
                average.copy_(tensor, True)
        self.updates += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model has the average as its state; then its own again."""
        own = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        try:
            self._put(self._averages)
            yield
        finally:
            self._put(own)

    @paddle.no_grad()
    def _put(self, values: Mapping[str, paddle.Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(values[name].astype(tensor.dtype), True)

    # In a checkpoint

    def arrays(self) -> dict[str, np.ndarray]:
        """The averages on the host, under the names of the model's state."""
        return as_arrays(self._averages)

    def set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from `arrays`, those of all averages or of some."""
        for name, array in arrays.items():
            average = self._averages[name]
            average.set_value(paddle.to_tensor(array).astype(average.dtype))

    def statistics(self) -> dict[str, paddle.Tensor]:
        """The averages of batch norm's running statistics, in which ranks may differ."""
        return parallel.only_statistics(self._averages)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises UserError for what `state_dict` never returned."""
        updates = state.get("updates") if isinstance(state, Mapping) else None
        if type(updates) is not int or updates < 0:
            raise UserError(f"components.ema: expected 'updates', a number >= 0, got {updates!r}")
        self.updates = updates


def _copy(tensor: paddle.Tensor) -> paddle.Tensor:
    """A tensor of its own with the values of `tensor`, in a precision that can be averaged."""
    copy = tensor.detach().clone()
    copy.stop_gradient = True
    is_low = copy.dtype in (paddle.float16, paddle.bfloat16)
    return copy.astype("float32") if is_low else copy
