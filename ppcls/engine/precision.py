"""Mixed precision as one object, so that a training step is written once."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppcls.engine.config import AMPConfig
from ppcls.utils.errors import UserError

logger = logging.getLogger("ppcls")


class Precision:
    """What autocasts, scales and steps. Without AMP each of them does nothing extra.

    O1 casts operators by list; O2 also keeps the weights in the low precision, with float32
    copies in the optimizer. Only float16 scales the loss: bfloat16 has float32's range.

    Raises UserError for float16 on a CPU.
    """

    def __init__(self, config: AMPConfig | None, device: str) -> None:
        is_on = config is not None and config.use_amp and config.level != "O0"
        self.config = config if is_on else None
        self.scaler: paddle.amp.GradScaler | None = None
        self.overflow: paddle.Tensor | None = None  # whether the last update was left out
        if self.config is not None and device.startswith("cpu"):
            self.config = _without_gpu(self.config)
        if self.config is not None and self.config.dtype == "float16":
            self.scaler = paddle.amp.GradScaler(
                init_loss_scaling=self.config.scale_loss,
                use_dynamic_loss_scaling=self.config.use_dynamic_loss_scaling,
            )

    def prepare(self, model: nn.Layer, optimizer: Optimizer | None = None) -> None:
        """Cast the weights for O2, in place; state dicts stay float32."""
        if self.config is not None and self.config.level == "O2":
            paddle.amp.decorate(
                model, optimizer, level="O2", dtype=self.config.dtype, save_dtype="float32"
            )

    def autocast(self) -> Any:
        """Context of a forward pass."""
        if self.config is None:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(
            custom_white_list=self.config.custom_white_list,
            custom_black_list=self.config.custom_black_list,
            level=self.config.level,
            dtype=self.config.dtype,
            use_promote=self.config.use_promote,
        )

    def backward(self, loss: paddle.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer: Optimizer) -> None:
        """Update the weights; with float16, skip the update if a gradient overflowed."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.overflow = self.scaler._found_inf
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def _without_gpu(config: AMPConfig) -> None:
    """Paddle casts on GPUs only. A bfloat16 recipe still runs on a CPU, and says what it does."""
    if config.dtype == "float16":
        raise UserError(
            "AMP.dtype: expected a GPU for 'float16', but this run is on a CPU; "
            "type -o AMP.use_amp=False"
        )
    logger.warning("AMP: Paddle has no mixed precision on a CPU, this run computes in float32")
