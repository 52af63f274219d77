"""A folder of pictures, one command, and the names of its classes in every tool after it.

In this process: four tools that each import Paddle would take longer than their work.
"""

import json
import shutil

import eval
import export_model
import infer
import pytest
import running
import train
import yaml

from ppcls.arch import create_model
from ppcls.deploy import Predictor
from ppcls.engine import build, exporting
from ppcls.utils import download
from ppcls.utils.pdparams import save_pdparams

CLASSES = {"eight": 8, "no": 0, "one": 1}
RECIPE = str(running.CONFIGS / "finetune.yaml")
TRAIN, EVAL = (f"DataLoader.{phase}.dataset.transform_ops" for phase in ("Train", "Eval"))
QUICK = ("Arch.name=HarDNet39_ds", "Global.epochs=1", "Optimizer.lr.warmup_epoch=0")
QUICK += ("Global.image_shape=[3,64,64]", f"{TRAIN}.1.RandCropImage.size=64")
QUICK += tuple(f"{ops}.1.ResizeImage.resize_short=64" for ops in (EVAL, "Infer.transforms"))
QUICK += tuple(f"{ops}.2.CropImage.size=64" for ops in (EVAL, "Infer.transforms"))
QUICK += tuple(f"DataLoader.{phase}.loader.num_workers=0" for phase in ("Train", "Eval"))


@pytest.fixture(scope="module")
def started(tmp_path_factory, dataset):
    """A folder with `pictures/CLASS/*.png` and weights of 1000 classes."""
    folder = tmp_path_factory.mktemp("own")
    for name, digit in CLASSES.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for path in sorted((dataset / "digits" / "train" / str(digit)).iterdir())[:6]:
            shutil.copy(path, folder / "pictures" / name)
    state = {name: t.numpy() for name, t in create_model("HarDNet39_ds").state_dict().items()}
    save_pdparams(folder / "start.pdparams", state)
    return folder


@pytest.fixture(scope="module")
def trained_on(started):
    """The run's folder; the pictures have moved since."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(started)
        recipe = ("-c", RECIPE, "-o", "Global.data_dir=pictures", *QUICK)
        assert train.main([*recipe, "Global.pretrained_model=start.pdparams"]) == 0
        run = started / "output" / "HarDNet39_ds"
        assert eval.main([*own(run), "--json", "eval.json"]) == 0
        (started / "pictures").rename(started / "moved")
    return run


def own(run):
    return "-c", str(run / "config.yaml"), "-o", f"Global.pretrained_model={run}/latest"


def a_picture(started):
    return str(sorted((started / "moved" / "no").iterdir())[0])


def test_classes_keep_their_names(started, trained_on, monkeypatch):
    monkeypatch.chdir(started)
    run = trained_on
    resolved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["Infer"]["PostProcess"]["class_names"] == list(CLASSES)
    assert resolved["Arch"]["class_num"] == 3
    (record,) = running.records(run, "eval")
    assert record["samples"] == 3 and len(running.losses(run)) == 1
    found = json.loads((started / "eval.json").read_text())
    assert (found["samples"], found["loss"]) == (3, record["loss"])

    argv = (f"Infer.infer_imgs={a_picture(started)}", "--json", "infer.json")
    assert infer.main([*own(run), *argv]) == 0
    (result,) = json.loads((started / "infer.json").read_text())["images"]
    assert result["label_names"] == [list(CLASSES)[i] for i in result["class_ids"]]
    monkeypatch.setattr(exporting, "fuse", lambda network, _: network)  # half of the test's time
    session = build.open_session(own(run)[1], own(run)[3:], "")
    plan = exporting.classifier_plan(session, exporting.GraphOptions())
    assert plan.manifest.class_names == list(CLASSES) and plan.manifest.topk == 3


def test_a_run_goes_on_where_its_pictures_have_moved(started, trained_on, monkeypatch):
    """Names and labels of the samples are the same: so is the draw of those held out."""
    monkeypatch.chdir(started)
    first = ("-c", RECIPE, "-o", "Global.data_dir=moved", *QUICK)
    assert train.main([*first, "Global.auto_resume=True"]) == 0
    log = (trained_on / "train.log").read_text()
    assert "going on after epoch 1" in log and "nothing is left to do" in log


@pytest.mark.slow
def test_an_export_has_the_names(started, trained_on, monkeypatch):
    monkeypatch.chdir(started)
    weights = str(trained_on / "latest.ema.pdparams")
    recipe = ("-c", str(trained_on / "config.yaml"), "--checkpoint", weights)
    assert export_model.main([*recipe, "-o", "Global.save_inference_dir=out"]) == 0
    content = yaml.safe_load((started / "out" / "inference.yml").read_text(encoding="utf-8"))
    assert content["PostProcess"]["Topk"]["label_list"] == list(CLASSES)
    (result,) = Predictor("out").predict([a_picture(started)])
    assert set(result["label_names"]) == set(CLASSES)


def refused(capsys, *argv):
    assert train.main([*argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_are_one_line(started, trained_on, tmp_path, monkeypatch, capsys):
    def receive(*_, **__):
        raise download.DownloadError("no connection")

    monkeypatch.setattr(download, "receive", receive)
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    pictures = started / "moved"
    shutil.copytree(pictures, "own")
    argv = ("-c", RECIPE, "-o", "Global.data_dir=own", *QUICK)
    line = refused(capsys, *argv)
    assert "cannot download HarDNet39_ds_pretrained.pdparams (no connection); get it from" in line
    assert line.endswith("; or type -o Global.pretrained_model=PATH")
    (tmp_path / "own" / "one" / "page.jpg").write_text("<html>")
    line = refused(capsys, *argv)
    assert "found 1 of 16 files that cannot be opened as such ('own/one/page.jpg')" in line
    assert not (tmp_path / "output").exists()
    assert eval.main(["-c", RECIPE, "-o", f"Global.data_dir={pictures}", *QUICK]) == 2
    assert "Global.pretrained_model: expected weights to use" in capsys.readouterr().err
