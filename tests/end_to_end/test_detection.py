"""Detection through the tools: train, stop and go on, evaluate, draw; COCO and VOC folders."""

from __future__ import annotations

import json
import textwrap
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
import running
from detection_folders import write_coco, write_voc
from PIL import Image

from ppcls.arch import create_model
from ppcls.deploy import programs
from ppcls.deploy.detector import worst_difference
from ppcls.utils.pdparams import load_paddle_state_dict

CONFIG = running.CONFIGS / "SSD300_HarDNet68_digits.yaml"
TIMING = ("batch_cost", "reader_cost", "ips")
# Without its extra layers and heads, a small SSD is not to be had: four images and few steps.
COMMON = (
    "Global.epochs=2",
    "Global.print_batch_step=1",
    "Global.save_interval_steps=1",
    "Global.auto_resume=True",
    "Optimizer.lr.warmup_epoch=0",
    "DataLoader.Train.sampler.batch_size=1",
    "DataLoader.Train.sampler.drop_last=False",
    "DataLoader.Eval.sampler.batch_size=3",
    "Infer.label_list=null",
)


@pytest.fixture
def coco(tmp_path):
    """A workspace with a COCO folder of four pictures, and overrides that name it."""
    pytest.importorskip("pycocotools")
    write_coco(tmp_path / "coco")
    overrides = ["Arch.class_num=4"]
    for phase in ("Train", "Eval"):
        section = f"DataLoader.{phase}.dataset"
        overrides += [f"{section}.dataset_dir=coco", f"{section}.image_dir=train"]
        overrides += [f"{section}.anno_path=annotations/instances_train.json"]
    return tmp_path, (*COMMON, *overrides)


def tool(name, workspace, config, *overrides):
    argv = [running.ROOT / "tools" / f"{name}.py", "-c", config]
    argv += ["-o", *overrides] if overrides else []
    return running.start(workspace, *argv, "--json", f"{name}.json")


def run(name, workspace, config, *overrides):
    running.succeeded(running.finish(tool(name, workspace, config, *overrides)))
    return json.loads((workspace / f"{name}.json").read_text())


def records(workspace):
    lines = (workspace / "output" / "SSD_HarDNet68" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMING} for x in lines]


def weights(workspace):
    return load_paddle_state_dict(workspace / "output" / "SSD_HarDNet68" / "latest.pdparams")


def test_train_stop_go_on_evaluate_and_draw(coco, tmp_path_factory):
    workspace, overrides = coco
    result = run("train", workspace, CONFIG, *overrides)
    assert result["global_step"] == 8
    logged = records(workspace)
    trained = [record for record in logged if record["mode"] == "train"]
    assert all(np.isfinite([r["loc"], r["conf"], r["loss"]]).all() for r in trained)
    assert {"AP", "AP50", "AR100"} <= set(logged[-1])

    # Killed inside an epoch and started again, it ends at the same numbers.
    again = tmp_path_factory.mktemp("again")
    (again / "coco").symlink_to(workspace / "coco")
    process = tool("train", again, CONFIG, *overrides)
    path = again / "output" / "SSD_HarDNet68" / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") >= 2):
        time.sleep(0.01)
    assert process.poll() is None, running.finish(process)
    process.kill()
    process.communicate()
    run("train", again, CONFIG, *overrides)
    assert records(again) == logged
    for name, array in weights(workspace).items():
        np.testing.assert_array_equal(weights(again)[name], array, name)

    best = "Global.pretrained_model=output/SSD_HarDNet68/latest"
    found = run("eval", workspace, CONFIG, *overrides, best, "Global.results_dir=results")
    assert found["samples"] == 4
    assert found["AP50"] == pytest.approx(logged[-1]["AP50"], nan_ok=True)
    boxes = json.loads((workspace / "results" / "bbox.json").read_text())
    assert {box["image_id"] for box in boxes} <= {3, 4, 5, 9}
    assert {box["category_id"] for box in boxes} <= {2, 7, 90}

    images = ("Infer.infer_imgs=coco/train", "Infer.output_dir=drawn", "Infer.threshold=0.1")
    shown = run("infer", workspace, CONFIG, *overrides, best, *images)["images"]
    assert len(shown) == 4
    for entry in shown:
        with (
            Image.open(workspace / entry["picture"]) as picture,
            Image.open(workspace / entry["file_name"]) as original,
        ):
            assert picture.size == original.size
        assert entry["scores"] == sorted(entry["scores"], reverse=True)
        assert len(entry["labels"]) == len(entry["boxes"]) == len(entry["scores"])


def found_by(name, *argv):
    """Run tools/infer.py inside this process; return (rows, counts) of all its images."""
    import infer

    assert infer.main([*map(str, argv), "--json", f"{name}.json"]) == 0
    entries = json.loads(Path(f"{name}.json").read_text())["images"]
    rows = [
        [label, score, *box]
        for entry in entries
        for label, score, box in zip(entry["labels"], entry["scores"], entry["boxes"], strict=True)
    ]
    return np.array(rows), np.array([len(entry["scores"]) for entry in entries])


def save_weights_that_find(path, pictures, count=60):
    """Write random weights by which about `count` boxes of `pictures` score above 0.04."""
    paddle.seed(0)
    model = create_model("SSD_HarDNet68", class_num=4, size=300)
    model.eval()
    pixels = [np.float32(Image.open(name).resize((300, 300), 2)) for name in pictures]
    images = (np.stack(pixels)[..., ::-1] - np.float32([104, 117, 123])).transpose(0, 3, 1, 2)
    with paddle.no_grad():
        loc, conf = model(paddle.to_tensor(images))
        scale, stretch = (2 / float(conf.std()), 0.5 / float(loc.std()))
        gaps = scale * (conf[:, :, 1:] - conf[:, :, :1]).numpy()
        bias = np.float32([np.sort(gaps, axis=None)[-count] - np.log(0.05), 0, 0, 0])
        for head, other in zip(model.conf, model.loc, strict=True):
            head.weight.set_value(scale * head.weight)
            head.bias.set_value(np.tile(bias, len(head.bias) // 4))
            other.weight.set_value(stretch * other.weight)
    paddle.save(model.state_dict(), str(path))


@pytest.mark.slow
def test_an_exported_detector_finds_what_the_recipe_does(coco, monkeypatch):
    for package in ("paddle2onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    if not programs.has_pir():
        pytest.skip("paddle2onnx needs Paddle 3")
    workspace, overrides = coco
    monkeypatch.chdir(workspace)
    import export_model

    save_weights_that_find("w.pdparams", sorted(Path("coco/train").iterdir()))
    recipe = ("-c", str(CONFIG), "-o", *overrides, "Global.pretrained_model=w.pdparams")
    images = ("Infer.infer_imgs=coco/train", "Infer.Detection.score=0.04")
    forms = ("openvino", "onnx", "paddle")
    assert export_model.main([*recipe, *images, "--format", ",".join(forms)]) == 0
    wanted = found_by("recipe", *recipe, *images)
    assert len(wanted[0]) > 10
    for form in forms:
        found = found_by(form, "--model", "inference", "--runtime", form, "coco/train")
        assert worst_difference(wanted, found) < 1e-3, form


def test_evaluation_on_two_processes_counts_what_one_counts(coco):
    workspace, overrides = coco
    run("train", workspace, CONFIG, *overrides, "Global.max_steps=1")
    best = "Global.pretrained_model=output/SSD_HarDNet68/latest"
    one = run("eval", workspace, CONFIG, *overrides, best)
    options = ("--nproc_per_node", 2, "--master", f"127.0.0.1:{running.free_port()}")
    argv = (running.EVAL, "-c", CONFIG, "-o", *overrides, best, "--json", "two.json")
    process = running.start(workspace, *running.launcher(*options), *argv)
    running.succeeded(running.finish(process))
    two = json.loads((workspace / "two.json").read_text())
    for result in (one, two):
        del result["seconds"]
    assert one == two


def test_a_voc_folder(tmp_path):
    write_voc(tmp_path / "voc")
    base = running.CONFIGS / "SSD300_HarDNet68_voc.yaml"
    recipe = tmp_path / "voc.yaml"
    recipe.write_text(
        textwrap.dedent(f"""\
            _BASE_: {base}
            Global: {{epochs: 1, max_steps: 2, device: cpu, print_batch_step: 1}}
            Optimizer: {{lr: {{milestones: [1]}}}}
            DataLoader:
              Train:
                dataset: {{dataset_dir: voc}}
                sampler: {{batch_size: 1}}
                loader: {{num_workers: 0}}
              Eval:
                dataset: {{dataset_dir: voc}}
                loader: {{num_workers: 0}}
            """)
    )
    result = run("train", tmp_path, recipe)
    assert result["global_step"] == 2
    best = "Global.pretrained_model=output/SSD_HarDNet68/latest"
    found = run("eval", tmp_path, recipe, best, "Global.results_dir=results")
    assert found["samples"] == 1 and 0 <= found["mAP"] <= 1
    assert (tmp_path / "results" / "comp4_det_test_person.txt").exists()
    shown = run("infer", tmp_path, recipe, best, "Infer.infer_imgs=voc/VOC2007/JPEGImages")
    assert len(shown["images"]) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["Arch.class_num=5"], "expected 4 categories (class_num 5 counts the background too)"),
        (["Global.task=classification", "Metric.Eval=null"], "got MultiBoxLoss, a detector's"),
        (["Arch.name=HarDNet39_ds", "Arch.size=null", "Arch.priors=null"], "Arch"),
        (["Global.image_shape=[3,512,512]"], "Global.image_shape: expected that of a training"),
        (["Loss.Train.0.MultiBoxLoss.neg_ratio=-1"], "neg_ratio: expected a number >= 0"),
        (["Metric.Eval=null"], "Metric.Eval: expected COCOMetric or VOCMetric"),
        (["DataLoader.Train.dataset.anno_path=none.json"], "none.json"),
        (["Global.results_dir=coco/train/000000000003.jpg"], "Global.results_dir: expected a fol"),
        (["Infer.Detection.iou=-1"], "Infer.Detection.iou: expected 0 or more"),
    ],
)
def test_mistakes_are_one_line(coco, overrides, message):
    workspace, common = coco
    finished = running.finish(tool("train", workspace, CONFIG, *common, *overrides))
    assert finished.code == 2, str(finished)
    assert finished.err.count("\n") == 1 and message in finished.err, finished.err
    assert not (workspace / "output").exists()


def test_evaluation_needs_the_classes_of_training(coco):
    workspace, overrides = coco
    path = workspace / "coco" / "annotations" / "instances_train.json"
    other = json.loads(path.read_text())
    for category in other["categories"]:
        category["name"] = {"cat": "dog", "dog": "cat"}.get(category["name"], category["name"])
    path.with_name("other.json").write_text(json.dumps(other))
    changed = "DataLoader.Eval.dataset.anno_path=annotations/other.json"
    finished = running.finish(tool("train", workspace, CONFIG, *overrides, changed))
    assert finished.code == 2, str(finished)
    message = (
        "expected the classes of DataLoader.Train in the same order, found label 1 to be 'dog'"
    )
    assert message in finished.err
