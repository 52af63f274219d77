"""A distillation through the tools: killed and resumed, on two processes, used and exported."""

import json
import time

import numpy as np
import pytest
import running
import yaml

from ppcls.deploy import Predictor
from ppcls.deploy.package import read_manifest
from ppcls.utils.pdparams import load_paddle_state_dict

pytestmark = pytest.mark.slow

DISTILL = running.CONFIGS / "HarDNet39_ds_digits_distill.yaml"
EVERY_STEP = "Global.save_interval_steps=1"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, short, weights):
    """`short` with the recipe's teacher, whose weights are those of a finished run."""
    sections = yaml.safe_load(short.read_text())
    sections["_BASE_"] = str(DISTILL)
    own = yaml.safe_load(DISTILL.read_text())["Arch"]
    own["models"][0]["Teacher"]["pretrained"] = str(weights)
    path = tmp_path_factory.mktemp("recipe") / "distill.yaml"
    path.write_text(yaml.safe_dump(sections | {"Arch": own}))
    return path


def train(workspace, recipe, *overrides):
    return running.start(workspace, running.TRAIN, "-c", recipe, "-o", *overrides)


def finished(process):
    return running.succeeded(running.finish(process))


def run_folder(workspace):
    return workspace / "output" / "DistillationModel"


def saved(workspace):
    return load_paddle_state_dict(run_folder(workspace) / "latest.pdparams")


@pytest.fixture(scope="module")
def distilled(make_workspace, recipe):
    workspace = make_workspace("distilled")
    run = finished(train(workspace, recipe, EVERY_STEP))
    assert "the teacher of Student: HarDNet39_ds (SHA-256 " in run.out
    return workspace


def test_files_are_those_of_a_plain_student(distilled, weights):
    plain, found = load_paddle_state_dict(weights), saved(distilled)
    assert list(found) == list(plain)
    assert {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in plain.items()}
    steps = running.records(run_folder(distilled), "train")
    assert {"top1", "DistillationGTCELoss", "DistillationKLDivLoss", "loss"} <= set(steps[0])


def test_killed_and_started_again(distilled, recipe, workspace):
    process = train(workspace, recipe, EVERY_STEP, "Global.auto_resume=True")
    log = run_folder(workspace) / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    finished(train(workspace, recipe, EVERY_STEP, "Global.auto_resume=True"))
    for name, array in saved(distilled).items():
        np.testing.assert_array_equal(saved(workspace)[name], array, name)


def test_another_teacher_is_refused(distilled, recipe, workspace):
    finished(train(workspace, recipe, "Global.eval_during_train=False"))
    other = run_folder(distilled) / "latest"
    again = (
        "Global.eval_during_train=False",
        "Global.auto_resume=True",
        f"Arch.models.0.Teacher.pretrained={other}",
    )
    run = running.finish(train(workspace, recipe, *again))
    assert run.code == 2 and run.err.count("\n") == 1
    assert "Arch.models: expected the teacher of the run to go on with" in run.err


def test_two_processes_learn_what_one_does(make_workspace, recipe, frozen):
    """Of the last, single image, one process has nothing. Batch norm keeps its statistics, which
    each process would take from its own images."""
    options = ("Arch.models.1.Student.dropout=0", "DataLoader.Train.dataset.cls_label_path=17.txt")
    half = ("DataLoader.Train.sampler.batch_size=4", "DataLoader.Eval.sampler.batch_size=2")
    one, two = make_workspace("one"), make_workspace("two")
    for folder in (one, two):
        lines = (folder / "dataset/digits/train_24.txt").read_text().splitlines()
        (folder / "17.txt").write_text("\n".join(lines[:17]))
    launch = running.launcher("--nproc_per_node", 2, "--master", f"127.0.0.1:{running.free_port()}")
    argv = (frozen, running.TRAIN, "-c", recipe, "-o", *options)
    processes = [running.start(one, *argv), running.start(two, *launch, *argv, *half)]
    for process in processes:
        finished(process)
    for name, array in saved(one).items():
        np.testing.assert_allclose(saved(two)[name], array, rtol=0, atol=1e-5, err_msg=name)
    results = [running.records(run_folder(folder), "eval")[0] for folder in (one, two)]
    assert results[0]["samples"] == results[1]["samples"] == 19


def test_the_student_is_evaluated_and_classifies_as_any_network(distilled, recipe, short):
    weights = "Global.pretrained_model=output/DistillationModel/latest"
    results = []
    for path in (recipe, short):
        argv = ("-c", path, "-o", weights, "--json", "eval.json")
        running.succeeded(running.tool(distilled, "eval", *argv))
        results.append(json.loads((distilled / "eval.json").read_text()))
    times = [result.pop("seconds") for result in results]
    assert results[0] == results[1] and all(times)
    found = []
    for path in (recipe, short):
        argv = ("-c", path, "-o", weights, "Infer.infer_imgs=dataset/digits/val/3")
        running.succeeded(running.tool(distilled, "infer", *argv, "--json", "infer.json"))
        found.append((distilled / "infer.json").read_text())
    assert found[0] == found[1] and "class_ids" in found[0]


def test_the_student_is_exported(distilled, recipe):
    weights = run_folder(distilled) / "latest"
    argv = ("-c", recipe, "--checkpoint", weights, "-o", "Global.save_inference_dir=out")
    running.succeeded(running.tool(distilled, "export_model", *argv, "--json", "export.json"))
    result = json.loads((distilled / "export.json").read_text())
    assert result["differences"]["paddle"] < 1e-4
    manifest = read_manifest(distilled / "out")
    assert (manifest.arch, manifest.class_num) == ("HarDNet39_ds", 10)
    image = next((distilled / "dataset/digits/val/3").iterdir())
    (answer,) = Predictor(distilled / "out").predict([image])
    assert len(answer["class_ids"]) == 3


def test_a_release_2_0_recipe_distils(workspace, weights):
    """Its own names, on photographs of ImageNet's size."""
    teacher = workspace / "teacher.pdparams"
    script = (
        "from ppcls.arch import create_model; from ppcls.utils.pdparams import save_pdparams; "
        "m = create_model('HarDNet39_ds'); "
        f"save_pdparams({str(teacher)!r}, {{k: v.numpy() for k, v in m.state_dict().items()}})"
    )
    running.succeeded(running.finish(running.start(running.ROOT, "-c", script)))
    overrides = ("ARCHITECTURE.name=HarDNet39_ds_distill_HarDNet39_ds", "use_distillation=True")
    overrides += (f"pretrained_model={teacher}", "epochs=1", "print_interval=1", "use_gpu=False")
    overrides += ("TRAIN.batch_size=4", "TRAIN.num_workers=0", "VALID.num_workers=0")
    overrides += ("use_mix=True", "TRAIN.mix=[MixupOperator]", "VALID.batch_size=2")
    legacy = running.CONFIGS / "HarDNet68_best_v2.yaml"
    run = running.succeeded(running.tool(workspace, "train", "-c", legacy, "-o", *overrides))
    assert "use_distillation -> Loss.Train: [{'DistillationDMLLoss'" in run.out
    assert running.losses(run_folder(workspace))[0] > 0
