"""What `pretrained` takes, and the table of what is published."""

import ast
import hashlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import oracle
import pytest
import yaml

from ppcls.arch import create_model, list_models, weights
from ppcls.arch.backbone.hardnet_plan import VARIANTS, expected_shapes
from ppcls.arch.weights import PUBLISHED, find_weights, load_pretrained, published
from ppcls.convert import paddle_to_torch, save_torch_state_dict
from ppcls.data.transforms import build_transforms
from ppcls.utils import download
from ppcls.utils.errors import UserError
from ppcls.utils.pdparams import save_pdparams, save_safetensors

ROOT = Path(__file__).resolve().parents[2]
ARCH = "HarDNet39_ds"
HEAD = ["base.14.3.weight", "base.14.3.bias"]


def state_of(class_num=10, arch=ARCH, seed=0):
    return oracle.weights(expected_shapes(VARIANTS[arch], class_num), seed)


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_loaded(model, state, but=()):
    found = arrays(model)
    assert set(found) - set(but) == set(state) - set(but)
    for name in set(found) - set(but):
        np.testing.assert_array_equal(found[name], state[name], name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("PPCLS_HOME", str(folder))
    monkeypatch.delenv("PPCLS_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def offline(cache, monkeypatch):
    """Stands in for the network: addresses asked for, none of which answers."""
    asked = []

    def receive(url, part, **_):
        asked.append(url)
        raise download.DownloadError("no connection")

    monkeypatch.setattr(download, "receive", receive)
    return asked


# The table


def test_published_rows_are_complete():
    assert [row.arch for row in PUBLISHED[:4]] == [row.arch for row in PUBLISHED[4:]]
    assert sorted({row.arch for row in PUBLISHED}) == list_models("HarDNet*")
    names = [name for row in PUBLISHED for name in (row.file, row.other_name) if name]
    assert len(set(names)) == len(names)
    for row in PUBLISHED:
        assert row.urls and all(url.startswith("https://") for url in row.urls)
        assert row.urls[-1].endswith(f"/{row.file}")
        assert row.sha256 is None or re.search(rf"-{row.sha256}\.pth$", row.file)
        assert 70 < row.top1 < 80 and (row.top5 is None or row.top1 < row.top5 < 100)
        assert row.size is None and row.licence and row.publisher and row.page


def test_published_accuracies_of_the_authors():
    by_authors = {row.arch: row.top1 for row in PUBLISHED if row.file.endswith(".pth")}
    assert by_authors == {
        "HarDNet39_ds": 72.1,
        "HarDNet68_ds": 74.3,
        "HarDNet68": 76.5,
        "HarDNet85": 78.0,
    }


def test_published_addresses_are_those_of_paddleclas():
    spec = importlib.util.find_spec("paddleclas")
    if spec is None:
        pytest.skip("paddleclas is not installed")
    folder = Path(spec.submodule_search_locations[0])
    text = (folder / "ppcls/arch/backbone/model_zoo/hardnet.py").read_text("utf-8")
    table = re.search(r"MODEL_URLS = (\{.*?\n\})", text, re.DOTALL)[1]
    ours = {row.arch: row.urls[0] for row in PUBLISHED if row.publisher == "PaddleClas"}
    assert ast.literal_eval(table) == ours


def test_published_transform_of_the_authors_is_the_recipes():
    recipe = yaml.safe_load((ROOT / "configs/HarDNet/_base_/imagenet.yaml").read_text())
    ours = published("hardnet68.pth").transform.transform_ops()
    assert ours == recipe["DataLoader"]["Eval"]["dataset"]["transform_ops"]


@pytest.mark.parametrize("row", PUBLISHED[3:5], ids=lambda row: row.file)
def test_published_transform_builds(row):
    transforms = build_transforms(row.transform.transform_ops(), "ops")
    image = np.zeros((300, 400, 3), np.uint8)
    assert transforms(image, np.random.default_rng(0)).shape[:2] == (224, 224)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("HarDNet68", "HarDNet68_pretrained.pdparams"),
        ("hardnet68", "HarDNet68_pretrained.pdparams"),
        ("hardnet68.pth", "hardnet68-5d684880.pth"),
        ("hardnet68-5d684880", "hardnet68-5d684880.pth"),
        ("hardnet68ds-632474d2.pth", "hardnet68ds-632474d2.pth"),
        ("https://ping-chao.com/hardnet/hardnet85-a28faa00.pth", "hardnet85-a28faa00.pth"),
    ],
)
def test_published_names(name, file):
    assert published(name).file == file


def test_published_unknown_names():
    assert published("HarDNet") is None and published("") is None


# From a name to a file


def test_pretrained_true_is_the_file_of_paddleclas(cache):
    save_pdparams(cache / "HarDNet39_ds_pretrained.pdparams", state_of(1000))
    assert_loaded(create_model(ARCH, pretrained=True), state_of(1000))
    assert_loaded(create_model(ARCH, pretrained="hardnet39_DS"), state_of(1000))


def test_pretrained_offline_says_which_file_goes_where(offline, cache):
    with pytest.raises(UserError) as raised:
        create_model(ARCH, pretrained=True)
    (row, *_) = (row for row in PUBLISHED if row.arch == ARCH)
    assert offline == list(row.urls)
    assert str(raised.value) == (
        f"cannot download {row.file} (no connection); get it from {row.urls[0]} "
        f"and put it there: {cache / row.file}"
    )


def test_pretrained_official_file_is_checked(offline, cache, monkeypatch):
    save_torch_state_dict(cache / "hardnet39ds-0e6c6fa9.pth", paddle_to_torch(state_of(1000), ARCH))
    with pytest.raises(UserError, match="cannot download hardnet39ds-0e6c6fa9.pth"):
        create_model(ARCH, pretrained="hardnet39ds.pth")
    assert [url.split("/")[2] for url in offline] == ["github.com", "ping-chao.com"]
    digest = hashlib.sha256((cache / "hardnet39ds-0e6c6fa9.pth").read_bytes()).hexdigest()
    row = weights.PublishedWeights(**{**vars(published("hardnet39ds.pth")), "sha256": digest})
    monkeypatch.setattr(weights, "PUBLISHED", (row,))
    assert_loaded(create_model(ARCH, pretrained="hardnet39ds.pth"), state_of(1000))


def test_pretrained_local_file_comes_first(cache, tmp_path):
    save_pdparams(tmp_path / "hardnet39ds.pth", state_of(seed=1))
    assert find_weights("hardnet39ds.pth", ARCH) == Path("hardnet39ds.pth")


def test_pretrained_name_of_another_network_downloads_nothing(offline):
    with pytest.raises(UserError, match="expected weights of HarDNet68, these are those of HarDNe"):
        create_model("HarDNet68", pretrained="HarDNet85")
    assert offline == []


def test_pretrained_true_without_published_weights(offline):
    with pytest.raises(UserError, match="no weights are published"):
        find_weights(True, None)


def test_pretrained_addresses(offline, cache):
    url = "https://example.org/runs/best%20model.pdparams?token=secret"
    with pytest.raises(UserError) as raised:
        find_weights(url, ARCH)
    assert offline == [url] and "secret" not in str(raised.value)
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-best_20model.pdparams"
    assert str(cache / name) in str(raised.value)
    with pytest.raises(UserError, match="expected an http or https address, got 'file:///etc/x'"):
        find_weights("file:///etc/x", ARCH)
    assert offline == [url]


# From a file into a network


@pytest.mark.parametrize("suffix", [".pth", ".pdparams", ".safetensors", "-torch.safetensors"])
def test_pretrained_formats(cache, suffix):
    path, state = f"own{suffix}", state_of()
    if suffix == ".pth":
        save_torch_state_dict(path, paddle_to_torch(state, ARCH, 10))
    elif suffix == ".pdparams":
        save_pdparams(path, state)
    elif suffix == ".safetensors":
        save_safetensors(path, state)
    else:
        save_safetensors(path, paddle_to_torch(state, ARCH, 10))
    assert_loaded(create_model(ARCH, class_num=10, pretrained=path), state)


def test_pretrained_old_container_of_pytorch(cache, assets):
    with pytest.raises(UserError, match=r"legacy\.pth: the weights do not fit HarDNet39_ds"):
        create_model(ARCH, pretrained=str(assets / "torch_ckpt" / "legacy.pth"))


def test_pretrained_new_classifier(cache, caplog):
    save_pdparams("own.pdparams", state_of(10))
    model = create_model(ARCH, class_num=7, pretrained="own.pdparams")
    assert_loaded(model, state_of(10), but=HEAD)
    assert "new classifier, other class count: base.14.3.weight, base.14.3.bias" in caplog.text
    before = arrays(model)
    with pytest.raises(UserError, match="2 wrong shape"):
        load_pretrained(model, ARCH, "own.pdparams", new_head=False)
    assert_loaded(model, before)


@pytest.mark.parametrize("without", [{"features_only": True}, {"class_num": 0}])
def test_pretrained_without_classifier(cache, without):
    save_pdparams("own.pdparams", state_of(10))
    model = create_model(ARCH, pretrained="own.pdparams", **without)
    assert_loaded(model, state_of(10), but=HEAD)


def test_pretrained_stays_strict(cache):
    state = state_of(10)
    state["base.99.weight"] = state.pop("base.0.norm.bias")
    save_pdparams("own.pdparams", state)
    for options in ({"class_num": 10}, {"class_num": 7}, {"class_num": 0}):
        with pytest.raises(UserError, match=r"1 missing \(base.0.norm.bias\); 1 unexpected"):
            create_model(ARCH, pretrained="own.pdparams", **options)


def test_pretrained_pytorch_needs_a_hardnet(cache):
    save_torch_state_dict("own.pth", paddle_to_torch(state_of(10), ARCH, 10))
    with pytest.raises(UserError, match="PyTorch's weights can be loaded into the HarDNets alone"):
        load_pretrained(create_model(ARCH), None, "own.pth")


def test_pretrained_false_does_nothing():
    load_pretrained(None, ARCH, False)


# From a recipe


def test_pretrained_model_of_a_recipe_takes_a_name(cache, caplog):
    from ppcls.engine.build import Session, build_network
    from ppcls.engine.config import Recipe

    save_pdparams(cache / "HarDNet39_ds_pretrained.pdparams", state_of(1000))
    settings = {"Global": {"pretrained_model": "HarDNet39_ds"}}
    arch = {"name": "hardnet_39_ds", "class_num": 7}
    session = Session(Recipe.parse({**settings, "Arch": arch}, "test"), "cpu")
    assert_loaded(build_network(session, new_head=True), state_of(1000), but=HEAD)
    assert "HarDNet39_ds_pretrained.pdparams by PaddleClas: top-1 71.33 %" in caplog.text
    with pytest.raises(UserError, match="2 wrong shape"):
        build_network(session)
    own = {**arch, "pretrained": "HarDNet39_ds"}  # the network's own argument: the same rule
    session = Session(Recipe.parse({"Arch": own}, "test"), "cpu")
    assert_loaded(build_network(session, new_head=True), state_of(1000), but=HEAD)
    with pytest.raises(UserError, match="2 wrong shape"):
        build_network(session)
