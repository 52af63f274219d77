"""Losses: from the `Loss` section of a config to one number per batch."""

from ppcls.loss.celoss import CELoss
from ppcls.loss.combined import LOSSES, CombinedLoss, build_loss
from ppcls.loss.multibox import MultiBoxLoss

__all__ = ["LOSSES", "CELoss", "CombinedLoss", "MultiBoxLoss", "build_loss"]
