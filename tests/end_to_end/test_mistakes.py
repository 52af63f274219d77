"""A user's mistakes: exit code 2, one line on standard error, nothing left behind.

All commands run once, two at a time, when the first test asks for its result.
"""

import concurrent.futures
import re

import pytest
import running

TRAIN_LIST = "DataLoader.Train.dataset.cls_label_path"
EVAL_LIST = "DataLoader.Eval.dataset.cls_label_path"
OPS = "DataLoader.Train.dataset.transform_ops"

# Name: tool, arguments after `-c RECIPE -o`, what the one line says.
CASES = {
    # keys and values
    "unknown-key": ("train", ["Global.epoch=1"], r"Global: unknown key 'epoch'; did you mean 'ep"),
    "wrong-type": (
        "train",
        ["Global.epochs=many"],
        r"Global\.epochs: expected an integer, got 'many' \(.*short\.yaml\)",
    ),
    "no-value": ("train", ["Global.epochs"], r"-o Global\.epochs: expected KEY=VALUE"),
    # names
    "arch": ("train", ["Arch.name=HarDNet86"], r"Arch.*'HarDNet86'; did you mean 'HarDNet85'\?"),
    "transform": (
        "train",
        [f"{OPS}.0=DecodeImages"],
        r"transform_ops\[0\]: unknown transform 'DecodeImages'; did you mean 'DecodeImage'\?",
    ),
    "loss": ("train", ["Loss.Train=[CELos]"], r"Loss\.Train\[0\]: unknown loss 'CELos'; did you"),
    "metric": ("train", ["Metric.Eval=[TopkAc]"], r"unknown metric 'TopkAc'; did you mean 'TopkA"),
    "optimizer": ("train", ["Optimizer.name=Momentun"], r"unknown optimizer 'Momentun'; did you"),
    # data
    "no-list": ("train", [f"{TRAIN_LIST}=none.txt"], r"none\.txt: cannot read the list file: No s"),
    "empty-list": ("train", [f"{TRAIN_LIST}=empty.txt"], r"empty\.txt: expected lines 'path label"),
    "malformed-line": (
        "train",
        [f"{TRAIN_LIST}=malformed.txt"],
        r"malformed\.txt:3: expected a whole number as label, got 'seven'",
    ),
    "label": (
        "train",
        [f"{EVAL_LIST}=label.txt"],
        r"label\.txt:2: expected a label from 0 to 9, got 10",
    ),
    "no-image-root": (
        "train",
        ["DataLoader.Train.dataset.image_root=none"],
        r"DataLoader\.Train\.dataset\.image_root: expected a folder, got 'none'",
    ),
    "missing-image": (
        "eval-weights",
        [f"{EVAL_LIST}=missing.txt"],
        r"digits/val/0/none\.png: cannot read the file: No such file",
    ),
    "broken-image": (
        "eval-weights",
        [f"{EVAL_LIST}=broken.txt", "DataLoader.Eval.dataset.image_root=."],
        r"\./broken\.png: cannot decode the image",
    ),
    "topk": (
        "train",
        ["Metric.Eval.0.TopkAcc.topk=[1,11]"],
        r"Metric\.Eval\[0\]\.TopkAcc\.topk: expected every k <= 10 \(Arch\.class_num\), got 11",
    ),
    # files
    "no-pretrained": (
        "train",
        ["Global.pretrained_model=none"],
        r"none: no such weight file \(nor none\.pdparams",
    ),
    "no-checkpoint": (
        "train",
        ["Global.checkpoints=none/latest"],
        r"Global\.checkpoints: expected the files latest.*in none, found no latest\.pdparams",
    ),
    "other-network": (
        "train-weights",
        ["Arch.name=HarDNet68_ds"],
        r"latest\.pdparams: does not fit HarDNet.*missing.*wrong shape",
    ),
    "other-head-eval": (
        "eval-weights",
        ["Arch.class_num=11"],
        r"latest\.pdparams: does not fit HarDNet.*2 wrong shape",
    ),
    "weights-are-text": (
        "eval",
        ["Global.pretrained_model=empty.txt"],
        r"empty\.txt: ",
    ),
    "no-weights": (
        "eval",
        [],
        r"Global\.pretrained_model: expected weights to use, found none; type -o Global\.pretr",
    ),
    "output-below-a-file": (
        "train",
        ["Global.output_dir=empty.txt/out"],
        r"Global\.output_dir: expected a folder that can be written, but .*empty\.txt is not",
    ),
    "no-infer-imgs": (
        "infer-weights",
        ["Infer.infer_imgs="],
        r"Infer\.infer_imgs: expected an image, a list or a folder, found none; type -o Infer",
    ),
    "missing-infer-img": (
        "infer-weights",
        ["Infer.infer_imgs=none.jpg"],
        r"none\.jpg: no such image",
    ),
    "broken-infer-img": (
        "infer-weights",
        ["Infer.infer_imgs=broken.png"],
        r"broken\.png: cannot decode the image",
    ),
    "infer-topk": (
        "infer-weights",
        ["Infer.PostProcess.topk=11"],
        r"Infer\.PostProcess\.topk: expected at most 10 \(Arch\.class_num\), got 11",
    ),
    # devices
    "gpu": ("train", ["Global.device=gpu"], r"Global\.device: .*'gpu'.*type -o Global\.device=cpu"),
    "float16": (
        "train",
        ["AMP.dtype=float16"],
        r"AMP\.dtype: expected .*'float16'.*; type -o AMP\.",
    ),
}

# Name: tool, all its arguments, what the one line says.
COMMANDS = {
    "no-recipe": ("train", [], r"the following arguments are required: -c/--config"),
    "missing-recipe": ("train", ["-c", "none.yaml"], r"none\.yaml: no such config file"),
    "not-yaml": ("train", ["-c", "broken.yaml"], r"broken\.yaml:\d: expected YAML, but"),
    "no-override": ("infer", ["-c", "x.yaml", "-o"], r"-o/--override: expected at least one"),
    "unknown-option": ("train", ["-c", "x.yaml", "--epochs=3"], r"unrecognized arguments: --ep"),
}


def spoiled(folder, dataset):
    """Put the files the cases name into `folder`."""
    good = (dataset / "digits" / "val_19.txt").read_text().splitlines()
    (folder / "empty.txt").write_text("")
    (folder / "malformed.txt").write_text("\n".join([*good[:2], "val/7/0.png seven", *good[2:]]))
    (folder / "label.txt").write_text("\n".join([good[0], "val/0/0.png 10"]))
    (folder / "missing.txt").write_text("\n".join([*good, "val/0/none.png 0"]))
    (folder / "broken.txt").write_text("broken.png 0\n")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (folder / "broken.yaml").write_text("Global:\n  epochs: [1\n")
    return {path.name for path in folder.iterdir()}


# Tests of the parts say the same of these; here is how they come out of a tool.
SLOW = {
    *("wrong-type", "no-value", "transform", "loss", "metric", "optimizer", "no-list"),
    *("empty-list", "label", "broken-image", "topk", "other-head-eval", "weights-are-text"),
    *("missing-infer-img", "infer-topk", "not-yaml", "no-override", "unknown-option"),
}
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in (*CASES, *COMMANDS)
]


@pytest.fixture(scope="module")
def results(request, make_workspace, dataset, short, weights):
    """Name -> (finished run, names of new files in its folder)."""

    def one(name):
        folder = make_workspace(name)
        before = spoiled(folder, dataset)
        if name in COMMANDS:
            tool, argv, _ = COMMANDS[name]
        else:
            tool, overrides, _ = CASES[name]
            tool, _, has_weights = tool.partition("-")
            if has_weights:
                overrides = [f"Global.pretrained_model={weights}", *overrides]
            argv = ["-c", short, *(["-o", *overrides] if overrides else [])]
        run = running.tool(folder, tool, *argv)
        return run, {path.name for path in folder.iterdir()} - before

    own = [item for item in request.session.items if item.nodeid.startswith(request.node.nodeid)]
    calls = [item.callspec.params for item in own if hasattr(item, "callspec")]
    chosen = {params["name"] for params in calls if "name" in params}
    names = [name for name in (*CASES, *COMMANDS) if name in chosen]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_are_one_line_and_exit_2(results, name):
    run, new_files = results[name]
    match = (CASES | COMMANDS)[name][2]
    assert run.code == 2, str(run)
    assert run.err.startswith("error: ") and run.err.count("\n") == 1, str(run)
    assert re.search(match, run.err), run.err
    assert "Traceback" not in run.out
    assert new_files == set()


BAD_IMAGES = {
    "gone": ("deep/none.png", "cannot read the file: No such file or directory"),
    "broken": ("bad.png", "cannot decode the image: "),
}


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_an_image_that_fails_while_training(workspace, short, kind, step):
    """It is opened only then, so the run's folder is there; a checkpoint is not."""
    path, reason = BAD_IMAGES[kind]
    (workspace / "images").mkdir()
    (workspace / "images" / "bad.png").write_bytes(b"GIF89a")
    (workspace / "images" / "train").symlink_to(workspace / "dataset" / "digits" / "train")
    good = (workspace / "dataset" / "digits" / "train_24.txt").read_text().splitlines()
    (workspace / "list.txt").write_text("\n".join([*good[: 8 * step], f"{path} 3"]))
    section = "DataLoader.Train"
    overrides = (f"{section}.dataset.image_root=images", f"{section}.sampler.shuffle=False")
    overrides += (f"{section}.dataset.cls_label_path=list.txt",)
    run = running.tool(workspace, "train", "-c", short, "-o", *overrides)
    assert run.code == 2, str(run)
    assert re.fullmatch(rf"error: images/{path}: {reason}.*\n", run.err), str(run)
    assert not list(workspace.glob("output/*/*.pd*"))


def test_debug_shows_the_traceback(workspace, short):
    run = running.tool(workspace, "train", "-c", short, "-o", "Global.epoch=1", "--debug")
    assert run.code == 2 and "Traceback" in run.err
    assert run.err.splitlines()[-1].startswith("error: Global: unknown key 'epoch'")


def test_a_loss_that_is_not_finite(workspace, short):
    """The first epoch is sound, the second one is not: exit 1, and the first one's files stay."""
    from ppcls.utils.pdparams import load_paddle_file, load_paddle_state_dict

    recipe = (
        f"_BASE_: {short}\nOptimizer:\n  lr:\n    name: Piecewise\n"
        "    decay_epochs: [1]\n    values: [0.01, 1.0e+30]\n"
    )
    (workspace / "explode.yaml").write_text(recipe)
    run = running.tool(workspace, "train", "-c", "explode.yaml", "-o", "Global.epochs=3")
    assert run.code == 1, str(run)
    last = run.err.splitlines()[-1]
    assert re.match(r"error: epoch 2, step \d: expected a finite loss, got (nan|inf)", last)
    assert "output/HarDNet39_ds" in last
    assert "Traceback" not in run.err
    folder = workspace / "output" / "HarDNet39_ds"
    assert load_paddle_file(folder / "latest.pdstates")["epoch"] == 1
    state = load_paddle_state_dict(folder / "latest.pdparams")
    assert all(abs(value).max() < 1e3 for value in state.values())
    assert {path.stem for path in folder.glob("*.pdparams")} == {"latest", "best_model"}
