"""`ppcls.deploy.Predictor`: every runtime says what the network in memory says."""

import dataclasses
import json
import subprocess
import sys
import textwrap
import threading

import numpy as np
import paddle
import pytest
import tiny_export
from detection_folders import picture, write_picture
from tiny_export import CLASSIFIER, DETECTOR, NAMES, SIZE, write_export

from ppcls.arch.backbone.hardnet_plan import HarDNetSpec, Stage
from ppcls.arch.detection.postprocess import PostProcess, PostProcessConfig
from ppcls.arch.detection.ssd import SSD
from ppcls.arch.detection.ssd_plan import SSDSpec
from ppcls.deploy import Predictor, runtimes
from ppcls.deploy.openvino_packages import openvino_core
from ppcls.deploy.package import InputSpec, read_manifest, write_manifest
from ppcls.utils.errors import DataError, JobError, UserError

FORMS = tiny_export.installed_forms()
OTHER_NUMBERS = "openvino-int8"
DEFAULT = next(form for form in runtimes.PREFERENCE if form in FORMS)
PICTURES = [picture(50, 40, 1), picture(20, 30, 2), np.full((30, 60, 3), 250, np.uint8)]
# Bright left, dark, and all bright: one, no and two objects, and far from the threshold.
HALVES = [np.zeros((40, 50, 3), np.uint8) for _ in range(3)]
HALVES[0][:, :25], HALVES[2][:] = 200, 250


@pytest.fixture(scope="module")
def network():
    return tiny_export.tiny_hardnet()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("tiny"), network, CLASSIFIER, FORMS)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    halves = tiny_export.BrightHalves()
    return write_export(tmp_path_factory.mktemp("halves"), halves, DETECTOR, FORMS)


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of the same files, to spoil."""
    target = tmp_path / "copy"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def assert_same(found, expected, tolerance=1e-4):
    """Results that differ in nothing but the last digits of numbers."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"scores", "boxes"}:
            assert one[key] == other[key], key
        for key in one.keys() & {"scores", "boxes"}:
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_every_runtime_computes_what_dygraph_does(folder, network, form):
    """Logits, in batches of sizes that were not exported."""
    loaded = runtimes.open_runtime(folder, read_manifest(folder), form, threads=1)
    assert loaded.name == form and loaded.threads == 1 and loaded.versions
    for count in (3, 1, 2):
        images = np.random.default_rng(count).standard_normal((count, 3, SIZE, SIZE), "float32")
        with paddle.no_grad():
            expected = network(paddle.to_tensor(images)).numpy()
        assert expected.std() > 0.3
        (logits,) = loaded.run([images])
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_stay_when_the_next_batch_is_computed(folder, form):
    loaded = runtimes.open_runtime(folder, read_manifest(folder), form, threads=1)
    images = np.random.default_rng(0).standard_normal((2, 1, 3, SIZE, SIZE), "float32")
    (first,) = loaded.run([images[0]])
    before = first.copy()
    loaded.run([images[1]])
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_classes(folder, network, form, batch_size):
    expected = Predictor.from_network(network, CLASSIFIER).predict(PICTURES)
    assert [len(result["class_ids"]) for result in expected] == [3, 3, 3]
    assert expected[0]["label_names"] == [NAMES[i] for i in expected[0]["class_ids"]]
    predictor = Predictor(folder, form, threads=1, batch_size=batch_size)
    assert_same(predictor.predict(PICTURES), expected)


@pytest.mark.parametrize("softmax_inside", [False, True])
def test_mirror_images_are_averaged(network, softmax_inside):
    """Logits are, whether the network gives them or probabilities."""
    inner, manifest = network, dataclasses.replace(CLASSIFIER, topk=5)
    if softmax_inside:
        inner = paddle.nn.Sequential(network, paddle.nn.Softmax())
        manifest = dataclasses.replace(manifest, output="probabilities")
    predictor = Predictor.from_network(inner, manifest, batch_size=2, flip=True)
    found = predictor.predict(PICTURES[:2])
    prepared = np.stack([predictor.prepare(image).tensor for image in PICTURES[:2]])
    both = [network(paddle.to_tensor(x)).numpy() for x in (prepared, prepared[..., ::-1].copy())]
    powers = np.exp(np.mean(both, axis=0).astype(np.float64))
    for result, row in zip(found, powers / powers.sum(axis=1, keepdims=True), strict=True):
        np.testing.assert_allclose(result["scores"], row[result["class_ids"]], atol=1e-5)
        assert result["class_ids"] == np.argsort(-row).tolist()
    with pytest.raises(UserError, match="flip: expected a classifier, got a detector"):
        Predictor.from_network(tiny_export.BrightHalves(), DETECTOR, flip=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_objects_none_included(detector, form, batch_size):
    """Of each image its own, in pixels of the original."""
    network = tiny_export.BrightHalves()
    found = Predictor(detector, form, threads=1, batch_size=batch_size).predict(HALVES)
    assert [result["label_names"] for result in found] == [["left"], [], ["left", "right"]]
    assert found[0]["boxes"] == [[0, 0, 25, 40]]
    assert_same(found, Predictor.from_network(network, DETECTOR, batch_size=3).predict(HALVES))


def test_an_ssd_in_memory_gets_its_post_processing():
    stages = [
        Stage(growth=4, layers=4, out_channels=16, downsample=True, ceil_mode=True),
        Stage(growth=4, layers=4, out_channels=16, downsample=True),
        Stage(growth=4, layers=4, out_channels=16, downsample=False),
    ]
    trunk = HarDNetSpec(
        stem=(4, 8),
        depthwise=False,
        multiplier=1.6,
        dropout=0.0,
        stages=tuple(stages),
        activation="relu",
    )
    spec = SSDSpec(classifier="HarDNet68", trunk=trunk, bridge=(16, 16), dilated=True)
    network = SSD(spec, 300, class_num=3)
    manifest = dataclasses.replace(
        DETECTOR,
        input=InputSpec(shape=[None, 3, 300, 300]),
        transform_ops=[DETECTOR.transform_ops[0], {"Resize": {"target_size": 300}}, "Permute"],
        detection={"score": 0.3, "per_image": 5},
    )
    predictor = Predictor.from_network(network, manifest)
    assert predictor.runtime == "dygraph"
    prepared = predictor.prepare(PICTURES[0])
    (result,) = predictor.run([prepared])
    with paddle.no_grad():
        loc, conf = network(paddle.to_tensor(prepared.tensor[None]))
        post = PostProcess(3, PostProcessConfig(score=0.3, per_image=5))
        rows, _ = post(loc, conf, network.priors, paddle.to_tensor([[50.0, 40.0]]))
    rows = rows.numpy()[np.argsort(-rows.numpy()[:, 1], kind="stable")]
    assert len(rows) >= 5 and result["labels"] == rows[:, 0].astype(int).tolist()
    np.testing.assert_allclose(result["boxes"], rows[:, 2:], rtol=1e-5)


def test_one_image_or_several_in_any_form(folder, tmp_path):
    write_picture(tmp_path / "a.png", 50, 40, 1)
    path, pixels = tmp_path / "a.png", picture(50, 40, 1)
    predictor = Predictor(folder, threads=1)
    (expected,) = predictor.predict(pixels)
    assert expected["file_name"] is None
    for image in (path.read_bytes(), bytearray(path.read_bytes()), [pixels], pixels[None]):
        assert predictor.predict(image) == [expected]
    for image in (path, str(path)):
        assert predictor.predict(image) == [{**expected, "file_name": str(path)}]
    assert predictor.predict((path, pixels))[1] == expected
    assert predictor.predict([]) == []


def test_prepare_and_run_are_what_predict_does(folder):
    predictor = Predictor(folder, threads=1)
    prepared = [predictor.prepare(image, f"image {i}") for i, image in enumerate(PICTURES)]
    results = predictor.run(prepared)
    assert [result["file_name"] for result in results] == ["image 0", "image 1", "image 2"]
    assert_same([{**r, "file_name": None} for r in results], predictor.predict(PICTURES))


def test_normalisation_and_softmax_inside_the_network(tmp_path):
    """Bytes go in channels last, probabilities come out, and the results are the same."""
    network = tiny_export.two_layers()

    class Whole(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, image):
            x = image.astype("float32").transpose([0, 3, 1, 2])
            return paddle.nn.functional.softmax(self.network((x / 255.0 - 0.5) / 0.5))

    manifest = dataclasses.replace(
        CLASSIFIER,
        input=InputSpec(shape=[None, SIZE, SIZE, 3], layout="NHWC", dtype="uint8"),
        output="probabilities",
        transform_ops=CLASSIFIER.transform_ops[:2],
    )
    write_export(tmp_path, Whole(), manifest, FORMS)
    expected = Predictor.from_network(network, CLASSIFIER).predict(PICTURES)
    for form in FORMS:
        predictor = Predictor(tmp_path, form, threads=1, batch_size=2)
        assert predictor.prepare(PICTURES[0]).tensor.dtype == np.uint8
        assert_same(predictor.predict(PICTURES), expected)
    # Logits are not probabilities.
    wrong = dataclasses.replace(CLASSIFIER, output="probabilities")
    with pytest.raises(JobError, match="expected probabilities"):
        Predictor.from_network(network, wrong).predict(PICTURES)


def test_a_fixed_batch_size_is_filled_up(tmp_path):
    network = tiny_export.two_layers()
    manifest = dataclasses.replace(CLASSIFIER, input=InputSpec(shape=[2, 3, SIZE, SIZE]))
    write_export(tmp_path, network, manifest, FORMS)
    expected = Predictor.from_network(network, CLASSIFIER).predict(PICTURES)
    for form in FORMS:
        predictor = Predictor(tmp_path, form, threads=1)
        assert predictor.batch_size == 2
        assert_same(predictor.predict(PICTURES), expected)
        assert_same(predictor.run([predictor.prepare(image) for image in PICTURES]), expected)


def test_images_of_several_sizes(tmp_path):
    """Where the network takes any size, a batch may hold several; it is computed in turn."""
    network = tiny_export.two_layers()
    manifest = dataclasses.replace(
        CLASSIFIER,
        input=InputSpec(shape=[None, 3, None, None]),
        transform_ops=[CLASSIFIER.transform_ops[0], *CLASSIFIER.transform_ops[2:]],
    )
    write_export(tmp_path, network, manifest, FORMS)
    images = [picture(64, 32, 1), picture(32, 64, 2), picture(64, 32, 3)]
    expected = [Predictor.from_network(network, manifest).predict(image)[0] for image in images]
    for form in FORMS:
        found = Predictor(tmp_path, form, threads=1, batch_size=3).predict(images)
        assert_same(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_many_threads(folder, form, hint):
    """Each gets its own results."""
    predictor = Predictor(folder, form, threads=2, hint=hint, batch_size=1)
    assert predictor.streams >= 1
    images = [picture(40, 40, seed) for seed in range(4)]
    expected = predictor.predict(images)
    failures = []

    def work(number):
        for _ in range(5):
            if predictor.predict(images[number]) != expected[number : number + 1]:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_fastest_runtime_that_is_installed(folder, monkeypatch, caplog):
    predictor = Predictor(folder, threads=1)
    assert predictor.runtime == DEFAULT
    assert f"HarDNetTiny runs as {DEFAULT} (" in caplog.text
    assert "float32, 1 thread" in caplog.text
    monkeypatch.setattr(runtimes, "is_installed", lambda form: form == "paddle")
    assert Predictor(folder).runtime == "paddle"
    monkeypatch.setattr(runtimes, "is_installed", lambda form: False)
    extra = "cpu" if DEFAULT == "paddle" else "deploy"
    with pytest.raises(UserError, match=rf"found none; .*hardnet-paddle\[{extra}\]"):
        Predictor(folder)
    with pytest.raises(UserError, match=r"'paddle', found none; .*hardnet-paddle\[cpu\]"):
        Predictor(folder, "paddle")


def test_int8_runs_when_asked_for(copy):
    """It computes other numbers than the network that was exported."""
    if OTHER_NUMBERS not in FORMS:
        pytest.skip("OpenVINO is not installed")
    write_manifest(copy, CLASSIFIER, [OTHER_NUMBERS])
    with pytest.raises(UserError, match="forms openvino, onnx, paddle .*found openvino-int8"):
        Predictor(copy)
    assert Predictor(copy, OTHER_NUMBERS, threads=1).runtime == OTHER_NUMBERS


def test_openvino_computes_in_float32_unless_told(folder):
    openvino = pytest.importorskip("openvino")
    manifest = read_manifest(folder)
    loaded = runtimes.open_runtime(folder, manifest, "openvino", threads=1)
    assert loaded.model.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    if "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        loaded = runtimes.open_runtime(folder, manifest, "openvino", precision="bfloat16")
        assert loaded.model.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16
    else:
        with pytest.raises(UserError, match="expected a processor that has bfloat16"):
            Predictor(folder, "openvino", precision="bfloat16")


def test_bfloat16_of_paddle(folder):
    if paddle.base.core.supports_bfloat16():
        found = Predictor(folder, "paddle", precision="bfloat16", threads=1).predict(PICTURES)
        expected = Predictor(folder, "paddle", threads=1).predict(PICTURES)
        assert found[0]["scores"] == pytest.approx(expected[0]["scores"], abs=0.05)
    else:
        with pytest.raises(UserError, match="expected a processor that has bfloat16"):
            Predictor(folder, "paddle", precision="bfloat16")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runtime": "openvin"}, "runtime: unknown form 'openvin'; did you mean 'openvino'"),
        ({"runtime": "tensorrt"}, "runtime: unknown form 'tensorrt'; known: openvino, onnx"),
        ({"threads": 0}, "threads: expected a whole number from 1, got 0"),
        ({"threads": "2"}, "threads: expected a whole number from 1, got '2'"),
        ({"precision": "float16"}, "precision: expected float32 or bfloat16, got 'float16'"),
        ({"hint": "speed"}, "hint: expected latency or throughput, got 'speed'"),
        ({"batch_size": 0}, "batch_size: expected a whole number from 1, got 0"),
    ],
)
def test_options_that_are_none(folder, options, message):
    with pytest.raises(UserError, match=message):
        Predictor(folder, **options)


def test_onnx_has_no_bfloat16(folder):
    if "onnx" not in FORMS:
        pytest.skip("ONNX Runtime is not installed")
    with pytest.raises(UserError, match="precision: expected float32 for the form 'onnx'"):
        Predictor(folder, "onnx", precision="bfloat16")


def test_the_threads_of_the_project_s_variable(folder, monkeypatch):
    monkeypatch.setenv("PPCLS_NUM_THREADS", "1")
    assert Predictor(folder).metadata()["threads"] == 1
    assert Predictor(folder, threads=2).metadata()["threads"] == 2
    monkeypatch.setenv("PPCLS_NUM_THREADS", "many")
    with pytest.raises(UserError, match="PPCLS_NUM_THREADS: expected a whole number"):
        Predictor(folder)


@pytest.mark.parametrize("form", FORMS)
def test_altered_and_missing_files(copy, form):
    manifest = read_manifest(copy)
    name = list(manifest.forms[form])[-1]
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name}: expected the exported file"):
        Predictor(copy, form)
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        Predictor(copy, form)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "paddle"])
def test_files_no_runtime_takes(copy, form):
    """The manifest fits, but they are no network. (Paddle Inference ends the process then.)"""
    for name in read_manifest(copy).forms[form]:
        (copy / name).write_bytes(b"no network")
    write_manifest(copy, CLASSIFIER, [form])
    with pytest.raises(UserError, match="cannot load it"):
        Predictor(copy, form)


@pytest.mark.parametrize("form", FORMS)
def test_a_network_with_other_inputs(copy, form):
    write_manifest(copy, DETECTOR, [form])
    with pytest.raises(UserError, match="inputs image, image_sizes, found image"):
        Predictor(copy, form)


def test_images_that_cannot_be_used(folder, tmp_path, copy):
    predictor = Predictor(folder, threads=1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png: cannot decode the image"):
        predictor.predict([PICTURES[0], tmp_path / "broken.png"])
    with pytest.raises(DataError, match="the image: expected HWC uint8 pixels"):
        predictor.predict(np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="the image: expected the bytes of an image file, got int"):
        predictor.predict([5])
    unscaled = [CLASSIFIER.transform_ops[0], *CLASSIFIER.transform_ops[2:]]
    write_manifest(copy, dataclasses.replace(CLASSIFIER, transform_ops=unscaled), [DEFAULT])
    write_picture(tmp_path / "a.png", 50, 40)
    with pytest.raises(DataError, match=r"a\.png: expected 3x32x32 .*, got 3x40x50"):
        Predictor(copy, threads=1).predict(tmp_path / "a.png")


def test_transforms_that_are_none(copy):
    write_manifest(copy, dataclasses.replace(CLASSIFIER, transform_ops=["Blur"]), [DEFAULT])
    with pytest.raises(UserError, match=r"inference\.yml: PreProcess\.transform_ops\[0\]: .*Blur"):
        Predictor(copy)


def test_outputs_that_are_not_finite(tmp_path):
    network = tiny_export.two_layers()
    network[-1].bias.set_value(paddle.full([len(NAMES)], float("nan")))
    write_export(tmp_path, network, CLASSIFIER, FORMS)
    for form in FORMS:
        with pytest.raises(JobError, match="not finite"):
            Predictor(tmp_path, form, threads=1).predict(PICTURES[0])


class Refuses(paddle.nn.Layer):
    def forward(self, image):
        raise ValueError("no\n  such images")


def test_a_runtime_that_fails_is_one_sentence():
    predictor = Predictor.from_network(Refuses(), CLASSIFIER)
    message = r"^dygraph: images \[1, 3, 32, 32\] cannot be computed: no such images$"
    with pytest.raises(JobError, match=message):
        predictor.predict(PICTURES[0])


@pytest.mark.parametrize("which", ["folder", "detector"])
def test_metadata_is_json(which, request):
    predictor = Predictor(request.getfixturevalue(which), threads=1)
    predictor.warm_up()
    predictor.warm_up(1, 3)
    found = json.loads(json.dumps(predictor.metadata()))
    assert found["runtime"] == predictor.runtime == DEFAULT
    assert found["task"] == predictor.manifest.task
    assert found["class_names"] == list(predictor.class_names)
    assert found["input"]["shape"] == [None, 3, SIZE, SIZE]
    assert found["precision"] == "float32" and found["batch_size"] == 1
    assert set(found["versions"]) == {"export", "runtime"}


def test_importing_loads_no_runtime():
    code = (
        "import sys, ppcls.deploy\n"
        "loaded = {'paddle', 'openvino', 'onnxruntime', 'cv2'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "from ppcls.deploy import Predictor\n"
        "loaded = {'paddle', 'openvino', 'onnxruntime'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(DEFAULT == "paddle", reason="no other runtime is installed")
def test_other_runtimes_do_without_paddle(folder):
    code = (
        "import sys, numpy\n"
        "sys.modules['paddle'] = None  # an import would fail\n"
        "from ppcls.deploy import Predictor\n"
        f"result, = Predictor({str(folder)!r}).predict(numpy.zeros((9, 9, 3), 'uint8'))\n"
        "assert len(result['class_ids']) == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks as Linux keeps them")
def test_a_signal_is_survived_after_a_predictor_went_in_another_thread(folder):
    pytest.importorskip("openvino")
    code = f"""
        import os, signal, threading, numpy
        from ppcls.deploy import Predictor
        held = [Predictor({str(folder)!r}, "openvino")]
        held[0].predict(numpy.zeros((9, 9, 3), "uint8"))
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        caught = []
        signal.signal(signal.SIGCHLD, lambda number, frame: caught.append(number))
        os.kill(os.getpid(), signal.SIGCHLD)
        assert caught == [signal.SIGCHLD]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)
