"""Losses: from the `Loss` section of a config to one number per batch."""

from ppcls.loss.bceloss import BCELoss
from ppcls.loss.celoss import CELoss, MixCELoss
from ppcls.loss.combined import LOSSES, CombinedLoss, build_loss
from ppcls.loss.distillation import (
    DistillationCELoss,
    DistillationDMLLoss,
    DistillationGTCELoss,
    DistillationKLDivLoss,
)
from ppcls.loss.multibox import MultiBoxLoss

__all__ = [
    "LOSSES",
    "BCELoss",
    "CELoss",
    "CombinedLoss",
    "DistillationCELoss",
    "DistillationDMLLoss",
    "DistillationGTCELoss",
    "DistillationKLDivLoss",
    "MixCELoss",
    "MultiBoxLoss",
    "build_loss",
]
