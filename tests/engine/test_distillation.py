"""A student learns from a teacher that stays as it is, and only the student is left of the run."""

import json
import logging

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn
from PIL import Image
from tiny_run import CLASSES, OPS, TinyNet, arrays, fit_and_die, tiny_net

from ppcls.arch import create_model
from ppcls.arch.registry import ARCHITECTURES
from ppcls.engine import parallel
from ppcls.engine.build import Session, build_network, build_trainer, evaluate
from ppcls.engine.config import load_recipe
from ppcls.engine.distillation import weights_digest
from ppcls.engine.exporting import deployed_network
from ppcls.loss import CELoss
from ppcls.utils.errors import ConfigError, JobError, UserError
from ppcls.utils.pdparams import load_paddle_file, load_paddle_state_dict, save_pdparams

SLOW = pytest.mark.slow
IMAGES = 18  # in batches of 4: the last has 2
PAIRS = {"model_name_pairs": [["Student", "Teacher"]]}
RECIPE = {
    "Global": {
        "epochs": 2,
        "device": "cpu",
        "print_batch_step": 1,
        "image_shape": [3, 8, 8],
        "output_dir": "output",
    },
    "Arch": {
        "name": "DistillationModel",
        "class_num": CLASSES,
        "freeze_params_list": [True, False],
        "infer_model_name": "Student",
        "models": [
            {"Teacher": {"name": "TinyTeacher", "pretrained": "teacher"}},
            {"Student": {"name": "TinyStudent"}},
        ],
    },
    "Loss": {
        "Train": [
            {"DistillationGTCELoss": {"weight": 0.25, "model_names": ["Student"]}},
            {"DistillationKLDivLoss": {"weight": 0.75, "temperature": 2, **PAIRS}},
        ],
        "Eval": [{"DistillationGTCELoss": {"model_names": ["Student"]}}],
    },
    "Optimizer": {"name": "Momentum", "momentum": 0.9, "lr": {"learning_rate": 0.1}},
    "DataLoader": {
        phase: {
            "dataset": {
                "name": "ImageFolderDataset",
                "image_root": "images",
                "transform_ops": [{"DecodeImage": {"backend": "pil"}}, *OPS[:1]],
            },
            "sampler": {"batch_size": 4, "shuffle": phase == "Train"},
            "loader": {"num_workers": 0},
        }
        for phase in ("Train", "Eval")
    },
    "Metric": {
        phase: [{"DistillationTopkAcc": {"model_key": "Student", "topk": [1, 2]}}]
        for phase in ("Train", "Eval")
    },
}


class Wide(TinyNet):
    """Another network than the student: it has a layer more, and one of another width."""

    def __init__(self, class_num):
        super().__init__(dropout=0.5)
        self.fc = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, class_num))


def tiny_student(class_num: int = 1000, dropout: float = 0.0):
    net = TinyNet(dropout=dropout)
    net.fc = nn.Linear(8, class_num)
    return net


def tiny_teacher(class_num: int = 1000):
    return Wide(class_num)


def wrong_teacher(class_num: int = 1000):
    return Wide(class_num + 1)


def deaf_teacher(class_num: int = 1000):
    return nn.Sequential(nn.Conv2D(3, class_num, 3))


@pytest.fixture(autouse=True)
def _networks(monkeypatch):
    entries = {"TinyStudent": tiny_student, "TinyTeacher": tiny_teacher}
    entries |= {"WrongTeacher": wrong_teacher, "DeafTeacher": deaf_teacher}
    for name, builder in entries.items():
        monkeypatch.setitem(ARCHITECTURES._entries, name, builder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of four colours in noise, and a teacher's weights."""
    root = tmp_path_factory.mktemp("distillation")
    rng = np.random.default_rng(3)
    for number in range(IMAGES):
        label = number % CLASSES
        pixels = rng.integers(0, 200, (8, 8, 3), np.uint8)
        pixels[..., label % 3] += np.uint8(13 * label)
        path = root / "images" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    save_pdparams(root / "teacher.pdparams", teacher_arrays(1))
    save_pdparams(root / "other.pdparams", teacher_arrays(2))
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return root


def teacher_arrays(seed):
    """Weights as of training: batch norm has statistics of its own."""
    paddle.seed(seed)
    rng = np.random.default_rng(seed)
    state = arrays(Wide(CLASSES))
    for name, array in state.items():
        if name.endswith(("_mean", "_variance")):
            state[name] = rng.uniform(0.2, 0.8, array.shape).astype("float32")
    return state


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch, tmp_path):
    """Run in a folder of its own where `images` and `teacher.pdparams` are."""
    for name in ("images", "teacher.pdparams", "other.pdparams", "recipe.yaml"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)


def session(*overrides, device="cpu"):
    return Session(load_recipe("recipe.yaml", overrides)[0], device)


def own_recipe(*overrides, **sections):
    """The same training of TinyStudent without a teacher."""
    own = RECIPE | {"Arch": {"name": "TinyStudent", "class_num": CLASSES}} | sections
    with open("own.yaml", "w") as file:
        yaml.safe_dump(own, file)
    return Session(load_recipe("own.yaml", overrides)[0], "cpu")


def build(*overrides):
    return build_trainer(session(*overrides))


def records(mode, folder="output"):
    with open(f"{folder}/DistillationModel/metrics.jsonl") as lines:
        found = [json.loads(line) for line in lines]
    timing = ("batch_cost", "reader_cost", "ips")
    return [{k: v for k, v in r.items() if k not in timing} for r in found if r["mode"] == mode]


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


# What trains, and what is left


def test_only_the_student_trains_and_only_it_is_saved():
    run = build("EMA.decay=0.9")
    teacher = run.task.teacher.network
    before, student = arrays(teacher), arrays(run.model)
    run.fit()
    assert_same(arrays(teacher), before)
    assert_same(before, load_paddle_state_dict("teacher.pdparams"))
    assert not any(layer.training for layer in [teacher, *teacher.sublayers()])
    assert all(p.stop_gradient and p.grad is None for p in teacher.parameters())
    own = {id(p) for p in run.model.parameters() if not p.stop_gradient}
    assert {id(p) for p in run.optimizer._parameter_list if not p.stop_gradient} == own
    for suffix in ("pdparams", "ema.pdparams"):
        saved = load_paddle_state_dict(f"output/DistillationModel/latest.{suffix}")
        assert list(saved) == list(arrays(tiny_student(CLASSES)))
        assert np.abs(saved["conv1.weight"] - student["conv1.weight"]).max() > 1e-4
        assert np.abs(saved["norm1._mean"]).max() > 0
    state = load_paddle_file("output/DistillationModel/latest.pdstates")
    assert state["data"]["teacher"] == weights_digest(teacher)
    assert set(state["parameter_names"]) == set(dict(run.model.named_parameters()))
    optimizer = load_paddle_file("output/DistillationModel/latest.pdopt")
    assert sum("velocity" in name for name in optimizer) == len(own)


def test_the_teacher_keeps_its_mode_whatever_the_network_s():
    run = build()
    for switch in (run.network.train, run.model.train, run.network.eval, run._set_training_mode):
        switch()
        assert not run.task.teacher.network.training
    run.model.train()
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 8, 8)), "float32")
    first = run.task._taught(images)
    run.task._taught(images * 100)  # neither batch norm nor dropout has a memory or a mood
    np.testing.assert_array_equal(run.task._taught(images), first)
    assert first.stop_gradient


def test_the_first_step_is_computed_by_hand():
    """Losses and the gradient, from the two networks' logits in float64."""
    run = build("Global.eval_during_train=False", "Global.max_steps=1")
    weight = run.model.fc.weight
    seen = {}
    update = run.precision.step

    def keep(optimizer):
        seen["gradient"] = weight.grad.numpy().copy()
        update(optimizer)

    run.precision.step = keep
    forward = run.task.forward

    def watch(network, batch):
        seen["batch"] = batch
        seen["taught"] = run.task._taught(batch.images).numpy().astype("float64")
        hook = run.model.fc.register_forward_post_hook(
            lambda layer, inputs, output: seen.update(
                features=inputs[0].numpy().astype("float64"),
                logits=output.numpy().astype("float64"),
            )
        )
        result = forward(network, batch)
        hook.remove()
        return result

    run.task.forward = watch
    run.fit()
    logits, taught = seen["logits"], seen["taught"]
    truth = np.eye(CLASSES)[seen["batch"].labels.numpy()]
    p, q, t = softmax(logits), softmax(logits / 2), softmax(taught / 2)
    hard = -0.25 * (truth * np.log(p)).sum(1).mean()
    soft = 0.75 * 4 * (t * np.log(t / q)).sum(1).mean()
    (first,) = records("train")
    assert first["DistillationGTCELoss"] == pytest.approx(hard, rel=1e-5)
    assert first["DistillationKLDivLoss"] == pytest.approx(soft, rel=1e-5)
    assert first["loss"] == pytest.approx(hard + soft, rel=1e-5)
    assert first["top1"] == (logits.argmax(1) == truth.argmax(1)).mean()
    slope = (0.25 * (p - truth) + 0.75 * 4 * (q - t) / 2) / len(logits)
    expected = seen["features"].T @ slope
    np.testing.assert_allclose(seen["gradient"], expected, rtol=1e-4, atol=1e-6)


def softmax(x):
    grown = np.exp(x - x.max(1, keepdims=True))
    return grown / grown.sum(1, keepdims=True)


def test_the_student_begins_as_it_would_alone():
    assert_same(arrays(build().model), arrays(build_network(own_recipe())))


def test_labels_of_mixed_images():
    mixing = "DataLoader.Train.dataset.batch_transform_ops=[MixupOperator]"
    run = build(mixing, "Loss.Train.1.DistillationKLDivLoss.weight=0")
    batch = next(iter(run.loader))
    assert batch.labels.shape == [4, CLASSES]
    run.model.eval()
    result = run.task.forward(run.model, batch)
    expected = 0.25 * float(CELoss()(run.model(batch.images), batch.labels))
    assert float(result.loss) == pytest.approx(expected, rel=1e-6)


def test_other_losses_of_labels_do_too():
    build("Loss.Train.0=MixCELoss", "Loss.Eval=[CELoss]", "Global.max_steps=1").fit()
    assert set(records("train")[0]) >= {"MixCELoss", "DistillationKLDivLoss", "loss"}


@pytest.mark.parametrize(
    "settings", [[], pytest.param(["AMP.dtype=bfloat16"], marks=SLOW)], ids=["float", "AMP"]
)
def test_compiled_networks_train_the_same(settings):
    losses = []
    for is_static in (False, True):
        out = f"Global.output_dir=static{is_static}"
        options = ("Global.update_freq=2", "Global.max_steps=4", *settings)
        run = build(f"Global.to_static={is_static}", out, *options)
        kinds = {type(net.forward).__name__ for net in (run.model, run.task.teacher.network)}
        assert ("method" in kinds) != is_static
        run.fit()
        losses.append([r["loss"] for r in records("train", f"static{is_static}")])
        assert not run.task.teacher.network.training
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_an_idle_process_asks_no_teacher():
    run = build()
    run.task.teacher.network.forward = None
    weights = [p for p in run.model.parameters() if not p.stop_gradient]
    result = run.task.forward_nothing(run.network, weights)
    assert float(result.loss) == 0 and set(result.sums) == set(run.task.names)


# Using the student


def test_the_student_is_used_like_any_network():
    """With the recipe of its distillation, and with one of its own."""
    build().fit()
    (last,) = (r for r in records("eval") if r["epoch"] == 2)
    weights = "Global.pretrained_model=output/DistillationModel/latest"
    found = session(weights)
    metric = {"Eval": [{"TopkAcc": {"topk": [1, 2]}}]}
    plain = own_recipe(weights, Loss={"Eval": [{"CELoss": {}}]}, Metric=metric)
    results = [evaluate(found), evaluate(plain)]
    for result in results:
        assert result.metrics == {name: last[name] for name in ("top1", "top2")}
        assert result.losses["loss"] == pytest.approx(last["loss"], rel=1e-6)
        assert result.samples == IMAGES
    saved = load_paddle_state_dict("output/DistillationModel/latest.pdparams")
    for network in (deployed_network(found), deployed_network(plain)):
        assert type(network) is TinyNet
        assert_same(arrays(network), saved)


def test_the_teacher_is_not_needed_for_that():
    network = build_network(session("Arch.models.0.Teacher.pretrained=gone"))
    assert type(network) is TinyNet


def test_a_run_of_its_resolved_recipe_is_the_same():
    build("Global.max_steps=2").fit()
    path = "output/DistillationModel/config.yaml"
    build_trainer(Session(load_recipe(path, ["Global.output_dir=again"])[0], "cpu")).fit()
    assert records("train", "again") == records("train")


# Stopped and started again

MANY = (
    "EMA.decay=0.9",
    "Global.update_freq=2",
    "Global.save_interval_steps=3",
    "Arch.models.1.Student.dropout=0.3",
    "DataLoader.Train.dataset.batch_transform_ops=[MixupOperator]",
)
AUTO = ("Global.auto_resume=True",)


@pytest.mark.parametrize("step", [4, pytest.param(8, marks=SLOW)])
def test_killed_in_any_step_and_started_again(step):
    build(*MANY, "Global.output_dir=whole").fit()
    fit_and_die(build(*MANY, *AUTO), step)
    run = build(*MANY, *AUTO)
    assert run.progress.global_step == step - step % 3  # 3: inside an update
    run.fit()
    for suffix in ("pdparams", "ema.pdparams"):
        found, expected = (
            load_paddle_state_dict(f"{root}/DistillationModel/latest.{suffix}")
            for root in ("output", "whole")
        )
        assert_same(found, expected)
    for mode in ("train", "eval", "eval_ema"):
        assert records(mode) == records(mode, "whole")


def test_a_run_goes_on_with_its_own_teacher_only(tmp_path):
    build("Global.epochs=1").fit()
    (tmp_path / "moved.pdparams").write_bytes((tmp_path / "teacher.pdparams").read_bytes())
    pretrained = "Arch.models.0.Teacher.pretrained"
    assert build(*AUTO, f"{pretrained}=moved.pdparams").progress.epoch == 1
    before = (tmp_path / "output/DistillationModel/metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError) as error:
        build(*AUTO, f"{pretrained}=other.pdparams")
    digests = [weights_digest(teacher(name))[:12] for name in ("teacher", "other")]
    assert str(error.value) == (
        "Arch.models: expected the teacher of the run to go on with (weights of SHA-256 "
        f"{digests[0]}), found another ({digests[1]})"
    )
    with pytest.raises(ConfigError, match=r"Arch\.models\.0\.Teacher\.name was 'TinyTeacher', is"):
        build(*AUTO, "Arch.models.0.Teacher.name=WrongTeacher")
    with pytest.raises(ConfigError, match=r"temperature was 2, is 3"):
        build(*AUTO, "Loss.Train.1.DistillationKLDivLoss.temperature=3")
    assert (tmp_path / "output/DistillationModel/metrics.jsonl").read_bytes() == before


def teacher(name):
    network = Wide(CLASSES)
    network.set_state_dict(load_paddle_state_dict(f"{name}.pdparams"))
    return network


def test_a_digest_knows_every_value_and_name():
    network = tiny_net()
    before = weights_digest(network)
    assert weights_digest(tiny_net()) == before
    with paddle.no_grad():
        network.norm2._variance[3] += 1e-6
    assert weights_digest(network) != before


def test_processes_must_read_the_same_teacher(monkeypatch):
    gather = parallel.gather_bytes
    other = {64: b"f00" * 20}  # to a digest
    monkeypatch.setattr(
        parallel, "gather_bytes", lambda own: [*gather(own), other.get(len(own), own)]
    )
    message = r"^Arch\.models\[0\]\.Teacher\.pretrained: expected all processes to read the same w"
    with pytest.raises(JobError, match=message):
        build()


# Mistakes

TEACHER = "Arch.models.0.Teacher"
GT, KL = "Loss.Train.0.DistillationGTCELoss", "Loss.Train.1.DistillationKLDivLoss"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{TEACHER}.pretrained="], r"models\[0\]\.Teacher\.pretrained: expected the teacher's w"),
        ([f"{TEACHER}.pretrained=False"], r"the teacher's weights .* found none"),
        ([f"{TEACHER}.pretrained=gone"], "gone: no such weight file"),
        ([f"{TEACHER}.pretrained=True"], "no weights are published for this network"),
        (
            [f"{TEACHER}.pretrained=3"],
            r"Teacher\.pretrained: expected true or false or text.*got 3",
        ),
        ([f"{TEACHER}.classes=3"], r"models\[0\]\.Teacher: unknown key 'classes'"),
        (["Arch.models.1.Student.drop=3"], r"models\[1\]\.Student: unknown key 'drop'"),
        ([f"{TEACHER}.name=TinyStudent"], "teacher.pdparams: does not fit"),
        (
            ["Arch.class_num=5"],
            r"^Arch\.models\[0\]\.Teacher: teacher.pdparams: does not fit TinyTeacher: 2 wr",
        ),
        ([f"{TEACHER}.class_num=5"], r"Teacher\.class_num: expected 4, as Student has, got 5"),
        (
            ["Arch.freeze_params_list=[True,True]"],
            "freeze_params_list: expected True for the teach",
        ),
        ([f"{KL}.temperature=0"], r"Loss\.Train\[1\].*temperature: expected a number > 0, got 0"),
        ([f"{KL}.weight=-1"], r"weight: expected a number >= 0"),
        (
            [f"{KL}.model_name_pairs=[[Student,Techer]]"],
            r"Loss\.Train\[1\]\.DistillationKLDivLoss\.model_name_pairs: expected "
            r"\[\['Student', 'Teacher'\]\], .*got \[\['Student', 'Techer'\]\]",
        ),
        ([f"{KL}.model_name_pairs=[[Teacher,Student]]"], r"got \[\['Teacher', 'Student'\]\]"),
        ([f"{KL}.model_name_pairs=[]"], r"model_name_pairs: expected .* got \[\]"),
        (
            [f"{GT}.model_names=[Student,Teacher]"],
            r"model_names: expected \['Student'\], the model",
        ),
        (
            ["Metric.Eval.0.DistillationTopkAcc.model_key=Teacher"],
            r"Metric\.Eval\[0\]\.DistillationTopkAcc\.model_key: expected 'Student'",
        ),
        (
            ["Loss.Train=[CELoss]"],
            r"Loss\.Train: expected a loss between Student and Teacher, such",
        ),
        (["Global.task=detection"], r"Global\.task: expected classification with Arch\.name: Dist"),
    ],
)
def test_mistakes_are_told_before_a_folder_is_made(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        build(*overrides)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "output").exists()


def test_a_teacher_that_does_not_answer_as_the_student_does(tmp_path):
    save_pdparams(tmp_path / "wrong.pdparams", arrays(wrong_teacher(CLASSES)))
    save_pdparams(tmp_path / "deaf.pdparams", arrays(deaf_teacher(CLASSES)))
    for name, message in (
        ("WrongTeacher", r"expected logits of 4 classes, as the student's, got 5"),
        ("DeafTeacher", r"Arch: expected a network that returns logits \[N, class_num\]"),
    ):
        weights = f"{TEACHER}.pretrained={name[:5].lower().rstrip('t')}.pdparams"
        with pytest.raises(UserError, match=r"^Arch\.models\[0\]\.Teacher: " + message):
            build(f"{TEACHER}.name={name}", weights)


def test_losses_of_two_models_need_two_models():
    message = (
        r"^Loss\.Train\[0\]\.DistillationGTCELoss: expected Arch\.name: DistillationModel, whose "
        "models it names, got a single network"
    )
    with pytest.raises(ConfigError, match=message):
        build_trainer(own_recipe())


def test_an_evaluation_has_no_teacher():
    pairs = "Loss.Eval.0.DistillationCELoss.model_name_pairs=[[Student,Teacher]]"
    with pytest.raises(ConfigError, match=r"^Loss\.Eval: expected losses of labels, since no tea"):
        build("Loss.Eval=[{}]", pairs)


def test_the_log_says_who_teaches(caplog):
    caplog.set_level(logging.INFO, "ppcls")
    run = build()
    digest = run.task.teacher.digest[:12]
    assert f"the teacher of Student: TinyTeacher (SHA-256 {digest})" in caplog.messages


@SLOW
@pytest.mark.zoo
def test_a_teacher_of_paddleclas_s_zoo(tmp_path):
    pytest.importorskip("paddleclas")
    network = create_model("MobileNetV3_small_x0_35", class_num=CLASSES)
    save_pdparams(tmp_path / "zoo.pdparams", arrays(network))
    weights = f"{TEACHER}.pretrained=zoo.pdparams"
    run = build(f"{TEACHER}.name=MobileNetV3_small_x0_35", weights, "Global.max_steps=1")
    assert_same(arrays(run.task.teacher.network), arrays(network))
    run.fit()
    assert records("train")[0]["DistillationKLDivLoss"] > 0
