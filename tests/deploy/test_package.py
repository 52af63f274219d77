"""The manifest of an export folder, and folders that are not what they were."""

import dataclasses

import pytest
import yaml

from ppcls.deploy import package
from ppcls.deploy.package import InputSpec, Manifest, check_files, read_manifest, write_manifest
from ppcls.utils.errors import UserError

MEAN = [0.5, 0.5, 0.5]  # one list, used twice
OPS = [
    {"DecodeImage": {"backend": "pil"}},
    {"ResizeImage": {"size": 32}},
    {"NormalizeImage": {"scale": "1.0/255.0", "mean": MEAN, "std": MEAN, "order": ""}},
    "ToCHWImage",
]
CLASSIFIER = Manifest(
    task="classification",
    arch="HarDNet39_ds",
    class_num=3,
    input=InputSpec(shape=[None, 3, 32, 32]),
    output="logits",
    transform_ops=OPS,
    class_names=["no", "猫, cat", "3"],
    topk=2,
    differences={"onnx": 1e-6},
    versions={"paddle": "3.3.1"},
)
DETECTOR = Manifest(
    task="detection",
    arch="SSD_HarDNet68",
    class_num=2,
    input=InputSpec(shape=[1, 300, None, 3], layout="NHWC", dtype="uint8"),
    output="detections",
    transform_ops=[{"DecodeImage": {"to_rgb": False}}],
    threshold=0.25,
    detection={"score": 0.01, "iou": 0.45},
)


def write(folder, manifest=CLASSIFIER, forms=("onnx", "openvino")):
    """An export folder whose files hold their own names."""
    for form in forms:
        for name in package.FORMS[form]:
            (folder / name).write_text(name)
    return write_manifest(folder, manifest, forms)


def edit(folder, **deploy):
    """Change keys of the section Deploy; None removes one."""
    path = folder / package.MANIFEST
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["Deploy"].update(deploy)
    content["Deploy"] = {k: v for k, v in content["Deploy"].items() if v is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.mark.parametrize("manifest", [CLASSIFIER, DETECTOR])
def test_what_is_written_is_read(tmp_path, manifest):
    written = write(tmp_path, manifest, package.FORMS)
    assert dataclasses.replace(written, forms={}) == manifest
    found = read_manifest(str(tmp_path))
    assert found == written
    for form, names in package.FORMS.items():
        assert list(found.forms[form]) == list(names)
        check_files(tmp_path, found, form)


def test_paddleclas_s_sections_are_plain_yaml(tmp_path):
    write(tmp_path)
    text = (tmp_path / package.MANIFEST).read_text(encoding="utf-8")
    assert "&" not in text and "*" not in text and "猫" in text
    content = yaml.safe_load(text)
    assert content["Global"]["model_name"] == "HarDNet39_ds"
    assert content["PreProcess"]["transform_ops"] == OPS
    assert content["PostProcess"]["Topk"] == {"topk": 2, "label_list": CLASSIFIER.class_names}


def test_a_file_that_is_missing_when_written_is_named(tmp_path):
    (tmp_path / "inference.xml").write_text("x")
    with pytest.raises(UserError, match=r"inference\.bin: no such file"):
        write_manifest(tmp_path, CLASSIFIER, ["openvino"])
    assert not (tmp_path / package.MANIFEST).exists()


def test_files_that_went_missing_or_were_altered(tmp_path):
    manifest = write(tmp_path)
    (tmp_path / "inference.xml").write_text("another")
    (tmp_path / "inference.onnx").unlink()
    with pytest.raises(UserError, match=r"inference\.xml: expected the exported file .*anew"):
        check_files(tmp_path, manifest, "openvino")
    with pytest.raises(UserError, match=r"inference\.onnx: no such file"):
        check_files(tmp_path, manifest, "onnx")
    (tmp_path / "inference.onnx").touch()
    with pytest.raises(UserError, match=r"inference\.onnx: the file is empty"):
        check_files(tmp_path, manifest, "onnx")


def test_forms_the_folder_lacks(tmp_path):
    manifest = write(tmp_path)
    with pytest.raises(UserError, match="expected the form 'paddle', found onnx, openvino"):
        check_files(tmp_path, manifest, "paddle")
    with pytest.raises(UserError, match="expected the form 'tensorrt'"):
        check_files(tmp_path, manifest, "tensorrt")


@pytest.mark.parametrize("names", [[], ["../weights"], ["../weights", "inference.onnx"]])
def test_a_form_is_all_of_its_files_and_no_others(tmp_path, names):
    write(tmp_path)
    edit(tmp_path, forms={"onnx": dict.fromkeys(names, "0" * 64)})
    message = r"(expected a SHA-256 of 'inference\.onnx'|unknown file '\.\./weights' of the form)"
    with pytest.raises(UserError, match=message):
        check_files(tmp_path, read_manifest(tmp_path), "onnx")


def test_paddle_2_writes_one_program(tmp_path):
    for name in ("inference.pdmodel", "inference.pdiparams"):
        (tmp_path / name).write_text(name)
    manifest = write_manifest(tmp_path, CLASSIFIER, ["paddle"])
    assert list(manifest.forms["paddle"]) == ["inference.pdmodel", "inference.pdiparams"]
    check_files(tmp_path, read_manifest(tmp_path), "paddle")


def test_folders_that_are_no_export(tmp_path):
    with pytest.raises(UserError, match="none: expected an export folder, found no folder"):
        read_manifest(tmp_path / "none")
    with pytest.raises(UserError, match="expected an export folder with inference.yml"):
        read_manifest(tmp_path)
    (tmp_path / package.MANIFEST).write_text("Global: {model_name: HarDNet68}\n")
    with pytest.raises(UserError, match="expected a section 'Deploy', found none"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, r"Deploy\.version: expected 1, got 2"),
        ({"version": None}, r"Deploy\.version: expected 1, got None"),
        ({"forms": {"tensorrt": {}}}, "unknown form 'tensorrt'; known: openvino"),
        ({"forms": {"onnx": {"inference.onnx": 5}}}, "expected text, got 5"),
        ({"task": "segmentation"}, r"Deploy\.task: expected one of"),
        ({"task": "detection"}, r"Deploy\.output: expected one of a detection network"),
        ({"class_num": 0}, r"Deploy\.class_num: expected a number >= 1"),
        ({"class_num": 4}, "class_names: expected 4 names, got 3"),
        ({"input": {"shape": [1, 3]}}, r"Deploy\.input\.shape: expected 4 sizes"),
        ({"input": {"shape": [0, 3, 32, 32]}}, r"Deploy\.input\.shape: expected sizes from 1"),
        ({"input": {"shape": [1, 3, 32, 32], "dtype": "int8"}}, r"Deploy\.input\.dtype"),
        ({"output": None}, "missing key 'output'"),
        ({"outputs": "logits"}, "unknown key 'outputs'; did you mean 'output'"),
    ],
)
def test_a_manifest_that_says_something_else(tmp_path, change, message):
    write(tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path / package.MANIFEST) in str(caught.value)


def bomb() -> str:
    """Ten lines that unfold to 1e9 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    return "\n".join(lines) + "\nDeploy: *a8\n"


@pytest.mark.parametrize(
    "text",
    [
        "Deploy: !!python/object/apply:os.system ['touch owned']\n",
        "Deploy: !!python/name:os.system\n",
        "!!python/object/new:type {args: [x, [], {}]}\n",
        "Deploy: !!int many\n",
        "Deploy: !!bool maybe\n",
        "Deploy: !!timestamp now\n",
        "Deploy: 2001-99-99\n",
        "Deploy: &a [*a]\n",
        "Deploy: {version: 1, version: 2}\n",
        "Deploy: [" + "[" * 5000,
        "- Deploy\n",
        "Deploy: \x00\n",
        bomb(),
    ],
)
def test_hostile_yaml_is_one_sentence(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / package.MANIFEST).write_text(text)
    with pytest.raises(UserError, match=r"inference\.yml") as caught:
        read_manifest(tmp_path)
    assert len(str(caught.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == [package.MANIFEST]


def test_a_manifest_reads_no_other_file(tmp_path):
    write(tmp_path)
    path = tmp_path / package.MANIFEST
    (tmp_path / "whole.yml").write_bytes(path.read_bytes())
    path.write_text("_BASE_: whole.yml\n")
    with pytest.raises(UserError, match="expected a section 'Deploy', found none"):
        read_manifest(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="expected a readable text file"):
        read_manifest(tmp_path)
