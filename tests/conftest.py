"""Fixtures every folder can use. pytest puts this folder on `sys.path`: `import oracle` works."""

import logging
import sys
from pathlib import Path

import PIL.Image  # noqa: F401  before Paddle, which brings a libjpeg and a libpng of its own
import pytest

from ppcls.deploy.telemetry import disable_telemetry

disable_telemetry()  # importing openvino or onnxruntime would send an event

# As if a tool were started from there: it finds its neighbour `_bootstrap`.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of stored files."""
    return Path(__file__).parent / "assets"


@pytest.fixture(autouse=True)
def _fresh_logger():
    """Let `caplog` see the project's log, and undo what a tool run inside a test has set up."""
    logger = logging.getLogger("ppcls")
    before = (logger.propagate, logger.level, list(logger.handlers))
    logger.propagate = True
    logger.setLevel(logging.INFO)
    yield
    logger.propagate, logger.level = before[:2]
    for handler in [h for h in logger.handlers if h not in before[2]]:
        logger.removeHandler(handler)
        handler.close()
