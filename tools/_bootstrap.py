"""Lets the tools run from a clone that is not installed: the repository goes on the import path.

`python -m paddle.distributed.launch tools/train.py ...` must work right after `git clone`, and must
find this project's `ppcls` even where PaddleClas has installed its own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
