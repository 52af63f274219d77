"""Recipes as files: `_BASE_`, YAML mistakes, and `-o` overrides."""

import pytest

from ppcls.utils.config import apply_override, load, merge, parse_override, read_yaml
from ppcls.utils.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


BASE = """
Global:
  epochs: 120
  seed: 0
Optimizer:
  name: Momentum
  momentum: 0.9
  lr:
    name: Piecewise
    decay_epochs: [30, 60]
    values: [0.1, 0.01, 0.001]
"""


# ---------------------------------------------------------------- _BASE_ files


def test_base_is_merged_key_by_key(write):
    write("base.yaml", BASE)
    path = write("own.yaml", "_BASE_: base.yaml\nGlobal:\n  epochs: 3\nArch:\n  name: HarDNet68\n")
    recipe = read_yaml(path)
    assert recipe["Global"] == {"epochs": 3, "seed": 0}
    assert recipe["Optimizer"]["momentum"] == 0.9
    assert recipe["Arch"] == {"name": "HarDNet68"}
    assert "_BASE_" not in recipe


def test_another_name_replaces_a_section(write):
    write("base.yaml", BASE)
    text = "_BASE_: base.yaml\nOptimizer:\n  lr:\n    name: Cosine\n    learning_rate: 0.05\n"
    optimizer = read_yaml(write("own.yaml", text))["Optimizer"]
    assert optimizer["momentum"] == 0.9
    assert optimizer["lr"] == {"name": "Cosine", "learning_rate": 0.05}


def test_the_same_name_keeps_a_section(write):
    write("base.yaml", BASE)
    text = "_BASE_: base.yaml\nOptimizer:\n  name: Momentum\n  momentum: 0.8\n"
    optimizer = read_yaml(write("own.yaml", text))["Optimizer"]
    assert optimizer["momentum"] == 0.8 and optimizer["lr"]["name"] == "Piecewise"


def test_lists_replace_lists(write):
    write("base.yaml", BASE)
    text = "_BASE_: base.yaml\nOptimizer:\n  lr:\n    decay_epochs: [5]\n    values: [1.0, 0.1]\n"
    lr = read_yaml(write("own.yaml", text))["Optimizer"]["lr"]
    assert lr == {"name": "Piecewise", "decay_epochs": [5], "values": [1.0, 0.1]}


def test_null_replaces_a_section(write):
    write("base.yaml", BASE)
    assert read_yaml(write("own.yaml", "_BASE_: base.yaml\nOptimizer: null\n"))["Optimizer"] is None


def test_later_bases_win_and_paths_are_relative_to_the_file(write):
    write("deep/one.yaml", "_BASE_: ../zero.yaml\nGlobal:\n  a: 1\n  b: 1\n")
    write("two.yaml", "Global:\n  b: 2\n")
    write("zero.yaml", "Global:\n  a: 0\n  z: 0\n")
    path = write("own.yaml", "_BASE_: [deep/one.yaml, two.yaml]\nGlobal:\n  c: 3\n")
    assert read_yaml(path) == {"Global": {"a": 1, "z": 0, "b": 2, "c": 3}}


def test_the_same_base_twice_is_no_circle(write):
    write("zero.yaml", "Global:\n  a: 0\n")
    write("one.yaml", "_BASE_: zero.yaml\n")
    assert read_yaml(write("own.yaml", "_BASE_: [one.yaml, zero.yaml]\n")) == {"Global": {"a": 0}}


def test_a_circle_of_bases(write):
    write("one.yaml", "_BASE_: two.yaml\nGlobal: {}\n")
    path = write("two.yaml", "_BASE_: one.yaml\nGlobal: {}\n")
    with pytest.raises(ConfigError, match=r"two\.yaml: expected _BASE_ files without a circle"):
        read_yaml(path)


def test_a_missing_base_is_named(write):
    path = write("own.yaml", "_BASE_: nowhere.yaml\nGlobal: {}\n")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such config file"):
        read_yaml(path)


def test_base_is_a_path_or_a_list(write):
    with pytest.raises(ConfigError, match=r"own\.yaml: .*_BASE_.*3"):
        read_yaml(write("own.yaml", "_BASE_: 3\nGlobal: {}\n"))


def test_merge_changes_neither_side():
    base, over = {"a": {"b": [1]}}, {"a": {"c": [2]}}
    merged = merge(base, over)
    merged["a"]["b"].append(9)
    merged["a"]["c"].append(9)
    assert base == {"a": {"b": [1]}} and over == {"a": {"c": [2]}}


# ---------------------------------------------------------------- what is no recipe


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Global:\n  epochs: 1\n  epochs: 2\n", r"own\.yaml:3: .*'epochs' is written twice"),
        ("Global:\n  epochs: [1\nArch: 2\n", r"own\.yaml:3: expected YAML, but"),
        ("Global:\n\tepochs: 1\n", r"own\.yaml:2: expected YAML, but"),
        ("Global: !!python/object:os.system {}\n", r"own\.yaml:1: expected YAML, but"),
        ("Global:\n  [1, 2]: 3\n", r"own\.yaml:2: .*expected text as a key"),
        ("- a\n- b\n", r"own\.yaml: expected sections such as Global and Arch, got \['a', 'b'\]"),
        ("", r"own\.yaml: expected sections such as Global and Arch, got None"),
    ],
)
def test_malformed_yaml_names_file_and_line(write, text, match):
    with pytest.raises(ConfigError, match=match):
        read_yaml(write("own.yaml", text))


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such config file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="expected a readable text file, got"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"Global:\n  output_dir: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: expected a readable text file"):
        read_yaml(tmp_path / "latin.yaml")


def test_yaml_merge_keys_are_read(write):
    text = "Global: &g\n  epochs: 1\nArch:\n  <<: *g\n  name: HarDNet68\n"
    assert read_yaml(write("own.yaml", text))["Arch"] == {"epochs": 1, "name": "HarDNet68"}


# ---------------------------------------------------------------- overrides

RECIPE = """
Global:
  epochs: 120
  pretrained_model: null
Infer:
Optimizer:
  lr:
    learning_rate: 0.1
Metric:
  Train:
    - TopkAcc:
        topk: [1, 5]
    - Other:
"""


def overridden(write, *overrides):
    recipe, lines = load(write("own.yaml", RECIPE), overrides)
    assert lines == []
    return recipe


def test_overrides_apply_in_order(write):
    recipe = overridden(
        write, "Global.epochs=1", "Optimizer.lr.learning_rate=0.5", "Global.epochs=2"
    )
    assert recipe["Global"]["epochs"] == 2
    assert recipe["Optimizer"]["lr"]["learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0.5", 0.5),
        ("1e-3", "1e-3"),  # YAML's word for it; the types read it as a number
        ("1.0/255.0", "1.0/255.0"),
        ("True", True),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("a=b=c", "a=b=c"),
        ("/data/a b/x=1", "/data/a b/x=1"),
        ("[1, 5]", [1, 5]),
        ("[]", []),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
    ],
)
def test_values_are_yaml_and_never_code(text, value):
    assert parse_override(f"Global.x={text}") == (["Global", "x"], value)


def test_an_index_reaches_into_a_list(write):
    recipe = overridden(write, "Metric.Train.0.TopkAcc.topk=[1,3]", "Metric.Train.1.Other.k=2")
    assert recipe["Metric"]["Train"] == [{"TopkAcc": {"topk": [1, 3]}}, {"Other": {"k": 2}}]


def test_an_index_may_replace_an_entry(write):
    assert overridden(write, "Metric.Train.1=Last")["Metric"]["Train"][1] == "Last"


def test_none_sections_are_filled(write):
    recipe = overridden(write, "Infer.PostProcess.topk=3", "AMP.use_amp=False")
    assert recipe["Infer"] == {"PostProcess": {"topk": 3}}
    assert recipe["AMP"] == {"use_amp": False}


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("Global.epochs", r"-o Global\.epochs: expected KEY=VALUE"),
        ("=1", r"^-o =1: "),
        ("Global..epochs=1", r"expected KEY=VALUE"),
        ("Global.epochs=[1", r"-o Global\.epochs=\[1.*expected YAML"),
        ("Global.epochs={a: 1}", r"expected a scalar or a list as the value, got a mapping"),
        ("Global.epochs.x=1", r"Global\.epochs: expected a section, found 120"),
        ("Metric.Train.2.TopkAcc.topk=1", r"expected one of 0 \(TopkAcc\), 1 \(Other\), got '2'"),
        ("Metric.Train.-1=1", r"expected one of 0 \(TopkAcc\)"),
        ("Metric.Train.TopkAcc.topk=1", r"expected one of 0 \(TopkAcc\).*got 'TopkAcc'"),
        ("Gloabl.epochs=1", r"unknown section 'Gloabl'; did you mean 'Global'\? known: Global, "),
        ("global.epochs=1", r"unknown section 'global'; did you mean 'Global'\?"),
        ("Something.epochs=1", r"unknown section 'Something'; known: Global, Arch"),
        ("TRAIN.batch_size=1", r"unknown section 'TRAIN'"),
    ],
)
def test_overrides_that_lead_nowhere(write, override, match):
    with pytest.raises(ConfigError, match=match):
        overridden(write, override)


def test_merge_keys_can_be_overridden(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text("Arch: &a {name: X, class_num: 3}\nGlobal:\n  <<: *a\n  class_num: 5\n")
    assert read_yaml(path)["Global"] == {"name": "X", "class_num": 5}


@pytest.mark.parametrize("text", ["Global.²=1", "Metric.Train.²=1", "Global.epochs=" + "[" * 3000])
def test_odd_overrides_are_sentences(text):
    mapping = {"Global": {"epochs": 1}, "Metric": {"Train": [{"TopkAcc": None}]}}
    try:
        apply_override(mapping, text)
    except ConfigError as error:
        assert str(error).startswith("-o ")
    else:  # a key nobody knows, which the types refuse
        assert mapping["Global"] == {"epochs": 1, "²": 1}
