"""Data and runs the end-to-end tests share: made once per session, read only."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import running

pytest.importorskip("sklearn")


def _every(path: Path, step: int, count: int) -> str:
    return "".join(path.read_text().splitlines(keepends=True)[::step][:count])


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A folder `dataset` with the digits, short lists of them, and a few photographs."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    digits = folder / "digits"
    script = running.ROOT / "scripts" / "prepare_digits.py"
    running.succeeded(running.finish(running.start(running.ROOT, script, digits)))
    (digits / "train_24.txt").write_text(_every(digits / "train_list.txt", 59, 24))
    (digits / "val_19.txt").write_text(_every(digits / "val_list.txt", 18, 19))
    (digits / "val_1.txt").write_text(_every(digits / "val_list.txt", 1, 1))
    _photographs(folder / "ILSVRC2012")
    return folder


def _photographs(folder: Path) -> None:
    """Write 6 JPEG crops of scikit-learn's two photographs, and two lists, as ImageNet's are."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    boxes = ((0, 0, 640, 427), (40, 10, 340, 410), (100, 50, 600, 250))
    names = []
    for number, picture in enumerate(pictures):
        for box in boxes:
            name = f"train/n0{number}/{len(names)}.JPEG"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            picture.crop(box).save(folder / name, format="JPEG")
            names.append(f"{name} {number * 999}\n")
    (folder / "train_list.txt").write_text("".join(names))
    (folder / "val_list.txt").write_text("".join(names[::2]))


@pytest.fixture(scope="session")
def short(tmp_path_factory) -> Path:
    """A recipe of one epoch: 3 steps of 8 digits, then an evaluation on 19."""
    path = tmp_path_factory.mktemp("recipe") / "short.yaml"
    path.write_text(
        textwrap.dedent(f"""\
            _BASE_: {running.DIGITS}
            Global:
              epochs: 1
              print_batch_step: 1
            Optimizer:
              lr:
                warmup_epoch: 0
            DataLoader:
              Train:
                dataset:
                  cls_label_path: ./dataset/digits/train_24.txt
                sampler:
                  batch_size: 8
              Eval:
                dataset:
                  cls_label_path: ./dataset/digits/val_19.txt
                sampler:
                  batch_size: 4
            """)
    )
    return path


@pytest.fixture(scope="session")
def make_workspace(tmp_path_factory, dataset):
    """Return a function that makes a folder with the data sets at `./dataset`."""

    def make(name: str = "run") -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "dataset").symlink_to(dataset)
        return folder

    return make


@pytest.fixture
def workspace(make_workspace) -> Path:
    return make_workspace()


@pytest.fixture(scope="session")
def trained(make_workspace, short) -> Path:
    """The workspace of a finished run of `short`, with its `train.json` and screen `out.txt`."""
    folder = make_workspace("trained")
    run = running.succeeded(running.tool(folder, "train", "-c", short, "--json", "train.json"))
    (folder / "out.txt").write_text(run.out)
    return folder


@pytest.fixture(scope="session")
def weights(trained) -> Path:
    """Weights of HarDNet39_ds for ten classes."""
    return trained / "output" / "HarDNet39_ds" / "latest.pdparams"


@pytest.fixture(scope="session")
def frozen(tmp_path_factory):
    """A script that runs a tool on networks whose batch norm keeps its statistics."""
    path = tmp_path_factory.mktemp("frozen") / "frozen.py"
    path.write_text(
        textwrap.dedent(f"""\
            import runpy, sys
            sys.path[:0] = {running.PYTHONPATH!r}
            from ppcls.utils import runtime
            runtime.import_paddle()
            import frozen_norm

            frozen_norm.freeze()
            sys.argv = sys.argv[1:]
            runpy.run_path(sys.argv[0], run_name="__main__")
            """)
    )
    return path
