"""The command `tools/analyze.py`: its tables, files, pictures and errors."""

import base64
import html.parser
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from paddle import nn

from ppcls.analysis import analyze, machine, pictures, report, timing
from ppcls.analysis.machine import Machine
from ppcls.arch import create_model, zoo
from ppcls.utils.errors import JobError

PATH = Path(__file__).resolve().parents[2] / "tools" / "analyze.py"
spec = importlib.util.spec_from_file_location("analyze_tool", PATH)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

MACHINE = Machine(flops=100e9, bandwidth=10e9, threads=2)  # 20 MACs for each element
SMALL = ["--arch", "hardnet_39_ds", "--input-size", "32", "--class-num", "5"]


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    monkeypatch.setattr(machine, "measure_machine", lambda: MACHINE)


def run(*arguments) -> int:
    return tool.main([str(argument) for argument in arguments])


def test_the_table_and_json(tmp_path, capsys):
    assert run(*SMALL, "--layers", "--json", tmp_path / "a.json") == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("| HarDNet39_ds ")]
    assert len(lines) == 1 and "| 1x3x32x32 |" in lines[0]
    assert out.count("\n|") == 2 + 2 + 75  # the network and its layers
    network = json.loads((tmp_path / "a.json").read_text())["networks"]["HarDNet39_ds"]
    cost = analyze(create_model("HarDNet39_ds", class_num=5), (1, 3, 32, 32))
    assert network["params"] == cost.params == 3_488_228 - 995 * 1025
    assert network["macs_conv"] == cost.macs("conv") and network["macs_linear"] == 5 * 1024
    assert network["cio"] == cost.cio == sum(row["cio"] for row in network["layers"][:-1])
    assert network["moc_min"] <= network["moc_median"] <= network["moc_max"]
    assert [row["name"] for row in network["layers"]] == [row.name for row in cost.layers]
    assert network["layers"][0]["moc"] == network["layers"][0]["macs"] / network["layers"][0]["cio"]
    assert "measured_ms" not in network


def test_measured_beside_predicted(tmp_path, capsys):
    assert run(*SMALL, "--measure", "--repeats", 2, "--json", tmp_path / "a.json") == 0
    result = json.loads((tmp_path / "a.json").read_text())
    network = result["networks"]["HarDNet39_ds"]
    assert all(row["measured_ms"] > 0 for row in network["layers"])
    first = network["layers"][0]
    expected = max(2 * first["macs"] / 100e9, first["bytes"] / 10e9)
    assert first["predicted_ms"] == pytest.approx(1e3 * expected)
    total = sum(row["measured_ms"] for row in network["layers"])
    assert network["measured_layers_ms"] == pytest.approx(total)
    assert network["measured_ms"] > 0.5 * total and network["repeats"] == 2
    assert result["machine"]["ceilings"]["balance_macs_per_element"] == 20
    assert "100 GFLOP/s (float32 matrix product by Paddle) and 10 GB/s" in capsys.readouterr().out


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.images, self.links = 0, [], []

    def handle_starttag(self, tag, attributes):
        self.rows += tag == "tr"
        values = dict(attributes)
        if tag == "img":
            self.images.append(values["src"])
        self.links += [values[key] for key in ("href", "src") if key in values and tag != "img"]


def test_pictures_and_page(tmp_path):
    pytest.importorskip("matplotlib")
    plot, page = tmp_path / "a.png", tmp_path / "a.html"
    assert run(*SMALL, "--plot", plot, "--html", page) == 0
    image = np.asarray(PIL.Image.open(plot).convert("RGB"))
    assert image.shape[1] > 1500
    for color in (pictures._BLUE, pictures._RED, pictures._ORANGE, pictures._GREEN):
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(image.astype(int) - rgb).max(-1) < 40).any(), color
    parsed = _Page()
    parsed.feed(page.read_text())
    assert parsed.rows == (1 + 1) + (1 + 75)
    assert len(parsed.images) == 1 and not parsed.links
    head, _, data = parsed.images[0].partition(",")
    assert head == "data:image/png;base64"
    assert PIL.Image.open(io.BytesIO(base64.b64decode(data))).size[0] > 1500


def test_networks_without_convolutions_or_products(capsys):
    pytest.importorskip("matplotlib")
    linear = pictures.Row(analyze(nn.Linear(4, 2), (1, 4), "linear<1>"))
    nothing = pictures.Row(analyze(nn.ReLU(), (1, 4)))
    assert b"linear&lt;1&gt;" in pictures.draw([linear], MACHINE, "svg")
    assert "linear&lt;1&gt;" in report.html_page([linear, nothing], MACHINE)
    assert len(report.markdown(report.networks_table([linear, nothing], None)).splitlines()) == 4


def test_all_leaves_out_the_zoo_and_keeps_detectors_at_a_size_they_take(monkeypatch, capsys):
    monkeypatch.setattr(zoo, "is_installed", lambda: False)
    built = []
    monkeypatch.setattr(tool, "analyze_network", lambda name, args: built.append(name))
    monkeypatch.setattr(tool, "print_report", lambda *_: None)
    args = tool.parser().parse_args(["--all", "--input-size", "64"])
    tool.measured(args, tool.chosen_names(args))
    assert {"HarDNet39_ds", "HarDNet68_ds", "HarDNet68", "HarDNet85", "SSD_HarDNet68"} < set(built)
    assert (
        "left out: ResNet50, DenseNet121, MobileNetV2: the extra 'zoo'" in capsys.readouterr().out
    )
    model, size = tool.build("SSD_HarDNet68", args)
    assert model.size == size == 512


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--arch", "HarDNet86"], "--arch: unknown Arch 'HarDNet86'; did you mean 'HarDNet85'"),
        (
            ["--arch", "HarDNet68", "--input-size", "8"],
            "HarDNet: expected an input it can run on, got [1, 3, 8, 8]: x: ",
        ),
        ([*SMALL[:3], "0"], "--input-size: expected 1 to 4096, got 0"),
        (["--arch", "SSD_HarDNet68", "--input-size", "224"], "size: expected 300 or 512, got 224"),
        ([*SMALL, "--repeats", "0"], "--repeats: expected 1 to 10000, got 0"),
        ([*SMALL, "--class-num", "0"], "--class-num: expected 1 to 1000000, got 0"),
        ([*SMALL, "--plot", "/nowhere/a.png"], "/nowhere/a.png: expected a file name in a folder"),
        ([*SMALL, "--plot", "a.bmp"], "--plot a.bmp: expected a file ending in .png, .svg, .pdf"),
        ([*SMALL, "--plot", "a.png", "--html", "a.png"], "expected different files"),
    ],
)
def test_mistakes(capsys, arguments, text):
    assert run(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and text in error


def test_without_the_zoo_or_matplotlib(monkeypatch, capsys):
    find = importlib.util.find_spec
    hidden = ("matplotlib", "paddleclas")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in hidden else find(name)
    )
    assert run("--arch", "ResNet50") == 2
    assert "the extra 'zoo', which is not installed" in capsys.readouterr().err
    for option in ("--plot", "--html"):
        assert run(*SMALL, option, "a.png") == 2
        error = capsys.readouterr().err
        assert f"{option}: expected the package 'matplotlib', found none" in error
        assert "pip install 'hardnet-paddle[analysis]'" in error


def test_one_of_arch_and_all_is_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--measure")
    assert stopped.value.code == 2
    assert "one of the arguments --arch --all is required" in capsys.readouterr().err


def test_the_ceilings_are_measured(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(machine, "GEMM_SIDE", 64)
    monkeypatch.setattr(machine, "ARRAY_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_cache_bytes", lambda: 0)
    found = machine.measure_machine(threads=2, tries=2)
    assert found.threads == 2 and found.flops > 1e6 and found.bandwidth > 1e6
    better = Machine(flops=1e15, bandwidth=1, threads=2)
    assert found.best(better) == Machine(flops=1e15, bandwidth=found.bandwidth, threads=2)


def test_the_roof():
    assert MACHINE.attainable(1) == 10e9 and MACHINE.attainable(1000) == 100e9
    conv = analyze(nn.Conv2D(3, 3, 1), (1, 3, 4, 4)).layers[0]
    assert MACHINE.predict(conv) == conv.traffic / 10e9 == 4 * (96 + 12) / 10e9
    assert conv.intensity == 2 * 144 / (4 * 108)


def test_a_network_that_changes_from_pass_to_pass():
    class Growing(nn.Layer):
        def __init__(self):
            super().__init__()
            self.linear, self.passes = nn.Linear(4, 4), 0

        def forward(self, x):
            self.passes += 1
            for _ in range(self.passes):
                x = self.linear(x)
            return x

    net = Growing()
    cost = analyze(net, (1, 4))
    with pytest.raises(JobError, match="Growing: expected 1 products in every pass, found 2"):
        timing.measure_layers(net, cost, repeats=1, warmup=0)


def test_a_ceiling_measured_too_low_is_told_of():
    net = nn.Linear(64, 64)
    cost = analyze(net, (1, 64))
    times = timing.Timing(layers=(1e-9,), total=1e-9, repeats=1)
    assert timing.too_fast(cost, times, MACHINE) == 1
    assert timing.too_fast(cost, timing.measure_layers(net, cost, 1, 0), MACHINE) in (0, 1)
