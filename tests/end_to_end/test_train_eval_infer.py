"""One process: train, evaluate, classify, and what each leaves behind."""

import importlib
import json
import re

import numpy as np
import pytest
import running
import yaml

TAGS = ("best_model", "latest")
SUFFIXES = (".pdopt", ".pdparams", ".pdstates")


@pytest.fixture(scope="module")
def run_folder(trained):
    return trained / "output" / "HarDNet39_ds"


@pytest.fixture(scope="module")
def evaluated(trained, short):
    argv = ("-c", short, "-o", "Global.pretrained_model=output/HarDNet39_ds/latest")
    run = running.tool(trained, "eval", *argv, "--json", "eval.json")
    return running.succeeded(run), json.loads((trained / "eval.json").read_text())


def test_files_of_a_run(run_folder):
    expected = {tag + suffix for tag in TAGS for suffix in SUFFIXES}
    expected |= {f"{tag}.json" for tag in TAGS}
    expected |= {"config.yaml", "metrics.jsonl", "train.log", "sets", ".lock"}
    assert {path.name for path in run_folder.iterdir()} == expected


def test_summary_of_training(trained, run_folder):
    result = json.loads((trained / "train.json").read_text())
    best = running.records(run_folder, "eval")[0]["top1"]
    assert result.pop("seconds_blocked_by_saves") > 0
    assert result == {
        "folder": "output/HarDNet39_ds",
        "epochs": 1,
        "global_step": 3,
        "best_metric": best,
        "best_epoch": 1,
        "skipped_updates": 0,
        "saves": 2,
    }


def test_metrics(run_folder):
    steps = running.records(run_folder, "train")
    assert [(s["epoch"], s["step"], s["global_step"]) for s in steps] == [
        (1, 0, 1),
        (1, 1, 2),
        (1, 2, 3),
    ]
    for step in steps:
        for key in ("loss", "CELoss", "lr", "ips", "reader_cost", "batch_cost", "top1", "top5"):
            assert isinstance(step[key], float), key
        assert step["loss"] == step["CELoss"] and 0 <= step["top1"] <= step["top5"] <= 1
    assert steps[0]["lr"] == 0.05
    evaluation = running.records(run_folder, "eval")
    assert len(evaluation) == 1
    assert evaluation[0]["samples"] == 19 and evaluation[0]["skipped"] == 0
    assert evaluation[0]["epoch"] == 1 and evaluation[0]["global_step"] == 3


def test_log_lines_keep_paddleclas_s_shape(trained, run_folder):
    log = (run_folder / "train.log").read_text()
    number = r"[0-9.]+"
    assert re.search(
        rf"\[Train\]\[Epoch 1/1\]\[Iter: 0/3\]lr\(CosineAnnealing\): 0\.05000000, "
        rf"top1: {number}, top5: {number}, CELoss: {number}, loss: {number}, "
        rf"batch_cost: {number}s, reader_cost: {number}, ips: {number} samples/s, "
        r"eta: \d+:\d\d:\d\d\n",
        log,
    )
    assert re.search(rf"\[Train\]\[Epoch 1/1\]\[Avg\]top1: {number}, .*loss: {number}\n", log)
    assert re.search(
        rf"\[Eval\]\[Epoch 1\]\[Avg\]CELoss: {number}, loss: {number}, top1: {number}, "
        rf"top5: {number}\n",
        log,
    )
    shown = (trained / "out.txt").read_text()
    assert log.count("[Train]") == shown.count("[Train]") == 4
    assert "output/HarDNet39_ds" in shown.splitlines()[-1]


def test_the_resolved_recipe_repeats_the_run(trained, run_folder):
    resolved = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert "_BASE_" not in resolved and resolved["Global"]["epochs"] == 1
    argv = ("-c", run_folder / "config.yaml", "-o", "Global.output_dir=again")
    running.succeeded(running.tool(trained, "train", *argv))
    again = trained / "again" / "HarDNet39_ds"
    assert running.losses(again) == running.losses(run_folder)
    keys = ("loss", "top1", "top5")
    first, second = (running.records(folder, "eval")[0] for folder in (run_folder, again))
    assert [first[key] for key in keys] == [second[key] for key in keys]
    repeated = yaml.safe_load((again / "config.yaml").read_text())
    repeated["Global"]["output_dir"] = resolved["Global"]["output_dir"]
    assert repeated == resolved


def test_evaluation_equals_that_of_training(run_folder, evaluated):
    _, result = evaluated
    assert result["samples"] == 19 and result["skipped"] == 0
    expected = running.records(run_folder, "eval")[0]
    assert {key: result[key] for key in ("top1", "top5", "loss")} == {
        key: expected[key] for key in ("top1", "top5", "loss")
    }
    assert result["top1"] == result["correct"]["top1"] / 19


def test_evaluation_leaves_nothing_but_its_json(trained, evaluated):
    run, _ = evaluated
    assert "[Eval][Epoch 0][Avg]" in run.out
    names = {path.name for path in trained.iterdir()}
    assert names <= {"dataset", "output", "again", "train.json", "out.txt", "eval.json", "i.json"}


def test_classify_a_folder(trained, short):
    argv = ("Global.pretrained_model=output/HarDNet39_ds/best_model.pdparams",)
    argv += ("Infer.infer_imgs=dataset/digits/val/7", "Infer.batch_size=7")
    run = running.tool(trained, "infer", "-c", short, "-o", *argv, "--json", "i.json")
    running.succeeded(run)
    images = json.loads((trained / "i.json").read_text())["images"]
    files = sorted((trained / "dataset" / "digits" / "val" / "7").iterdir())
    assert [image["file_name"] for image in images] == [
        f"dataset/digits/val/7/{path.name}" for path in files
    ]
    names = "zero one two three four five six seven eight nine".split()
    for image in images:
        assert len(image["class_ids"]) == len(set(image["class_ids"])) == 3
        assert image["label_names"] == [names[i] for i in image["class_ids"]]
        assert image["scores"] == sorted(image["scores"], reverse=True)
        assert 0 < sum(image["scores"]) <= 1.0001
        assert f"{image['file_name']}: {image['class_ids'][0]} " in run.out


def test_workers_change_nothing(workspace, short, trained):
    argv = ("DataLoader.Train.loader.num_workers=2", "DataLoader.Eval.loader.num_workers=2")
    running.succeeded(running.tool(workspace, "train", "-c", short, "-o", *argv))
    folders = [folder / "output" / "HarDNet39_ds" for folder in (workspace, trained)]
    assert running.losses(folders[0]) == running.losses(folders[1])
    counts = [
        {key: running.records(folder, "eval")[0][key] for key in ("loss", "top1", "top5")}
        for folder in folders
    ]
    assert counts[0] == counts[1]


def test_resumed_steps_equal_those_of_one_run(make_workspace, short):
    one, two = make_workspace("one"), make_workspace("two")
    common = ("-c", short, "-o", "Global.eval_during_train=False", "Global.epochs=2")
    whole = running.start(one, running.TRAIN, *common)
    running.succeeded(running.tool(two, "train", *common, "Global.max_steps=3"))
    resumed = "Global.checkpoints=output/HarDNet39_ds/latest"
    run = running.succeeded(running.tool(two, "train", *common, resumed))
    running.succeeded(running.finish(whole))
    assert "going on after epoch 1" in run.out
    folders = [folder / "output" / "HarDNet39_ds" for folder in (one, two)]
    assert running.losses(folders[0]) == running.losses(folders[1])
    assert len(running.losses(folders[1])) == 6


def test_a_broken_image_may_be_skipped(workspace, short):
    lists = workspace / "lists"
    lists.mkdir()
    good = (workspace / "dataset/digits/train_24.txt").read_text().splitlines()
    root = workspace / "images"
    (root / "broken").mkdir(parents=True)
    (root / "broken" / "text.png").write_text("no image")
    (root / "train").symlink_to(workspace / "dataset" / "digits" / "train")
    (lists / "train.txt").write_text("\n".join([*good[:14], "broken/text.png 1", "gone.png 2"]))
    (lists / "val.txt").write_text("\n".join([*good[:4], "broken/text.png 1"]))
    argv = []
    for phase, name in (("Train", "train"), ("Eval", "val")):
        section = f"DataLoader.{phase}.dataset"
        argv += [f"{section}.image_root=images", f"{section}.cls_label_path=lists/{name}.txt"]
        argv += [f"{section}.on_error=skip"]
    run = running.succeeded(running.tool(workspace, "train", "-c", short, "-o", *argv))
    folder = workspace / "output" / "HarDNet39_ds"
    log = (folder / "train.log").read_text()
    assert log.count("skipped images/broken/text.png: ") == 2  # once in training, once in eval
    assert log.count("skipped images/gone.png: ") == 1
    assert re.search(r"\[Train\]\[Epoch 1/1\]\[Avg\].*, skipped: 2\n", log), str(run)
    evaluation = running.records(folder, "eval")[0]
    assert evaluation["samples"] == 4 and evaluation["skipped"] == 1


def test_stock_paddleclas_takes_our_weights(weights):
    """`paddle.load` and `set_state_dict` on the wheel's network, which must compute the same."""
    pytest.importorskip("paddleclas")
    import paddle

    from ppcls.arch import create_model
    from ppcls.utils.pdparams import load_paddle_state_dict

    stock = importlib.import_module("paddleclas.ppcls.arch.backbone.model_zoo.hardnet")
    theirs = stock.HarDNet39_ds(class_num=10)
    missing, unexpected = theirs.set_state_dict(paddle.load(str(weights)))
    assert (missing, unexpected) == ([], [])
    ours = create_model("HarDNet39_ds", class_num=10)
    ours.set_state_dict(
        {n: paddle.to_tensor(a) for n, a in load_paddle_state_dict(weights).items()}
    )
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 64, 64), "float32"))
    theirs.eval(), ours.eval()
    np.testing.assert_allclose(theirs(images).numpy(), ours(images).numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_average_is_evaluated_and_exported(workspace, short):
    """By its own file, as any other weights."""
    recipe = ("EMA.decay=0.5", "Optimizer.layer_decay=0.75", "Optimizer.head_lr_mult=2")
    train = running.tool(workspace, "train", "-c", short, "-o", *recipe, "--json", "train.json")
    running.succeeded(train)
    folder = workspace / "output" / "HarDNet39_ds"
    for stem in TAGS:
        assert (folder / f"{stem}.ema.pdparams").is_file()
    logged = {
        "best_model.pdparams": running.records(folder, "eval")[0],
        "best_model.ema.pdparams": running.records(folder, "eval_ema")[0],
    }
    best = json.loads((workspace / "train.json").read_text())["best_metric"]
    assert best == logged["best_model.ema.pdparams"]["top1"]
    for file, record in logged.items():
        weights = f"Global.pretrained_model={folder / file}"
        running.succeeded(
            running.tool(workspace, "eval", "-c", short, "-o", weights, "--json", "eval.json")
        )
        result = json.loads((workspace / "eval.json").read_text())
        assert (result["loss"], result["top1"]) == (record["loss"], record["top1"]), file
    weights = folder / "best_model.ema.pdparams"
    running.succeeded(running.tool(workspace, "export_model", "-c", short, "--checkpoint", weights))
