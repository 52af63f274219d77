"""`tools/serve.py` with an engine that needs no model: for tests of the running program.

python tests/deploy/serving/fake_server.py --model . --port 0
FAKE_TASK=detection and FAKE_MS="10 1" (ms per batch and per image) change the engine.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[3] / "tools")]

import serve  # noqa: E402
from serving_fakes import FakeEngine  # noqa: E402


def load(args):
    per_batch, per_image = (float(text) / 1000 for text in os.environ.get("FAKE_MS", "0 0").split())
    task = os.environ.get("FAKE_TASK", "classification")
    return FakeEngine(task, per_batch=per_batch, per_image=per_image)


if __name__ == "__main__":
    serve.load = load
    sys.exit(serve.main())
