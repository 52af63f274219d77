"""The hub's entry points, from a folder that is not the clone."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import sys
import paddle

repo = sys.argv[1]
assert paddle.hub.list(repo, source="local") == [
    "hardnet39ds", "hardnet68", "hardnet68ds", "hardnet85"
]
text = paddle.hub.help(repo, "hardnet68", source="local")
assert "17.6 M parameters" in text and "pretrained" in text
net = paddle.hub.load(repo, "hardnet39ds", source="local", class_num=7)
net.eval()
assert net(paddle.zeros([1, 3, 32, 32])).shape == [1, 7]
maps = paddle.hub.load(repo, "hardnet39ds", source="local", features_only=True, out_indices=(1, 3))
assert maps.feat_channels == [320, 1024]
again = paddle.hub.load(repo, "hardnet39ds", source="local", class_num=7, pretrained=sys.argv[2])
print("classes", list(again.state_dict()["base.14.3.bias"].shape))
"""


def test_hub_from_another_folder(tmp_path):
    from ppcls.arch import create_model
    from ppcls.engine.checkpoint import state_arrays
    from ppcls.utils.pdparams import save_pdparams

    save_pdparams(tmp_path / "own.pdparams", state_arrays(create_model("HarDNet39_ds")))
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT), str(tmp_path / "own.pdparams")],
        cwd=tmp_path,
        env=variables | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "classes [7]" in run.stdout


def test_hub_documents_every_network():
    source = (ROOT / "hubconf.py").read_text()
    from ppcls.arch import list_models
    from ppcls.arch.weights import PUBLISHED

    for name in list_models("HarDNet*"):
        assert f'"{name}"' in source
    for row in PUBLISHED:
        assert row.file in source or row.file.endswith(".pdparams")
