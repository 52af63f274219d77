"""Pictures of a network on a machine: its roofline, MACs against CIO, and MoC over depth.

matplotlib is imported when a picture is drawn (extra `analysis`).
"""

from __future__ import annotations

import importlib.util
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppcls.analysis.cost import LayerCost, NetworkCost
from ppcls.analysis.machine import Machine
from ppcls.analysis.timing import Timing, too_fast
from ppcls.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FORMATS = ("png", "svg", "pdf")
ROW_INCHES = (17.0, 4.9)
# Okabe and Ito's colours, which people with any colour vision can tell apart.
_BLUE, _ORANGE, _GREEN, _PURPLE, _RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
_GREY = "#777777"


@dataclass(frozen=True)
class _Group:
    """Layers drawn alike."""

    label: str
    color: str
    marker: str


_DEPTHWISE = _Group("depthwise convolution", _ORANGE, "^")
_GROUPS = {
    "conv": _Group("convolution", _BLUE, "o"),
    "linear": _Group("linear layer", _GREEN, "s"),
    "matmul": _Group("product of activations", _PURPLE, "D"),
}


@dataclass(frozen=True)
class Row:
    """One network to draw; without a timing the roofline shows what is attainable."""

    cost: NetworkCost
    timing: Timing | None = None


def check_matplotlib(where: str) -> None:
    """Raise UserError when pictures cannot be drawn; `where` is what asked for them."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            f"{where}: expected the package 'matplotlib', found none; "
            "install it with: pip install 'hardnet-paddle[analysis]'"
        )


def draw(rows: Sequence[Row], machine: Machine, file_format: str = "png", dpi: int = 110) -> bytes:
    """Return a picture file with one row of three charts for each network."""
    check_matplotlib("pictures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(ROW_INCHES[0], ROW_INCHES[1] * len(rows)), dpi=dpi, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # inches
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(rows), 1, squeeze=False)
    for row, part in zip(rows, parts[:, 0], strict=True):
        _draw_row(part, row, machine)
    file = io.BytesIO()
    figure.savefig(file, format=file_format)
    return file.getvalue()


def _draw_row(part: Figure | SubFigure, row: Row, machine: Machine) -> None:
    shape = "x".join(map(str, row.cost.input_shape))
    part.suptitle(f"{row.cost.name} at {shape}", fontweight="bold")
    part.supxlabel(f"Ceilings of this machine: {machine}", fontsize=8, color=_GREY)
    if not row.cost.layers:
        part.text(
            0.5, 0.5, "nothing to count: no convolution, linear layer or product", ha="center"
        )
        return
    roof, traffic, depth = part.subplots(1, 3, width_ratios=(1, 1, 1.7))
    _draw_roofline(roof, row, machine)
    _draw_traffic(traffic, row.cost, machine)
    _draw_depth(depth, row.cost, machine)


def _draw_roofline(axes: Axes, row: Row, machine: Machine) -> None:
    layers = row.cost.layers
    _log_axes(axes, "FLOP per byte of input, output and weights", "GFLOP/s")
    ridge = machine.flops / machine.bandwidth
    reach = [layer.intensity for layer in layers] + [ridge]
    ends = [min(reach) / 2, ridge, max(reach) * 2]
    axes.plot(ends, [machine.attainable(x) / 1e9 for x in ends], color="black", zorder=1)
    rates = [machine.attainable(layer.intensity) / 1e9 for layer in layers]
    if row.timing:
        times = row.timing.layers
        rates = [2 * layer.macs / t / 1e9 for layer, t in zip(layers, times, strict=True)]
    _scatter(axes, layers, [layer.intensity for layer in layers], rates)
    axes.set_title(_roofline_title(row, machine), fontsize=10)
    axes.legend(fontsize=7, loc="lower right")


def _roofline_title(row: Row, machine: Machine) -> str:
    if row.timing is None:
        return "Roofline, layers at what they can reach"
    above = too_fast(row.cost, row.timing, machine)
    note = f"\n{above} above it: the machine was busy when it was measured" if above else ""
    return f"Roofline, measured layers{note}"


def _draw_traffic(axes: Axes, cost: NetworkCost, machine: Machine) -> None:
    layers = cost.layers
    _log_axes(axes, "CIO: elements of input and output", "MACs")
    left, right = _span([layer.cio for layer in layers])
    low, high = _span([layer.macs for layer in layers])
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    for milliseconds in (0.001, 0.01, 0.1, 1, 10, 100):
        _draw_equal_time(axes, milliseconds / 1e3, machine)
    _scatter(axes, layers, [layer.cio for layer in layers], [layer.macs for layer in layers])
    line = [left, right]
    axes.plot(line, [machine.balance * x for x in line], color="black", zorder=1)
    axes.set_title(
        f"MACs against CIO; line: balance, {machine.balance:.3g} MACs/element\n"
        "dotted: equal time at the ceilings (weights left out)",
        fontsize=9,
    )


def _draw_equal_time(axes: Axes, seconds: float, machine: Machine) -> None:
    """What both ceilings allow in this time: MACs up to a height, elements up to a width."""
    left, (low, high) = axes.get_xlim()[0], axes.get_ylim()
    height = machine.flops / 2 * seconds
    width = height / machine.balance
    axes.plot([left, width, width], [height, height, low], ":", color=_GREY, lw=0.9, zorder=0)
    if low * 1.3 < height < high / 2 and width > left * 1.5:
        text = f" {seconds * 1e3:g} ms"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(left, height, text, fontsize=7, color=_GREY, va="center", bbox=box, zorder=1)


def _draw_depth(axes: Axes, cost: NetworkCost, machine: Machine) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    mocs = cost.mocs
    axes.set_title("MoC of each convolution, in order of execution", fontsize=10)
    axes.set_xlabel("convolution")
    axes.set_ylabel("MoC: MACs per element")
    if not mocs:
        axes.text(0.5, 0.5, "no convolutions", ha="center", transform=axes.transAxes)
        return
    axes.set_yscale("log")
    axes.set_xlim(0, len(mocs) + 1)
    axes.set_ylim(min(*mocs, machine.balance) / 2, max(*mocs, machine.balance) * 4)
    is_low = [moc < machine.balance for moc in mocs]
    colors = [_RED if low else _BLUE for low in is_low]
    axes.bar(range(1, len(mocs) + 1), mocs, width=0.8, color=colors, zorder=2)
    median = statistics.median(mocs)
    axes.axhline(machine.balance, color="black", ls="--", lw=1, zorder=3)
    axes.axhline(median, color=_GREY, ls=":", lw=1.4, zorder=3)
    handles = [
        Patch(color=_BLUE, label=f"balance or more: {len(mocs) - sum(is_low)}"),
        Patch(color=_RED, label=f"below balance: {sum(is_low)}"),
        Line2D([], [], color="black", ls="--", lw=1, label=f"balance {machine.balance:.3g}"),
        Line2D([], [], color=_GREY, ls=":", lw=1.4, label=f"median {median:.4g}"),
    ]
    axes.legend(handles=handles, fontsize=7.5, ncols=4, loc="upper center", columnspacing=1.2)
    axes.grid(axis="y", color="#dddddd", zorder=0)


def _group(layer: LayerCost) -> _Group:
    return _DEPTHWISE if layer.is_depthwise else _GROUPS[layer.kind]


def _scatter(axes: Axes, layers: Sequence[LayerCost], x: Sequence, y: Sequence) -> None:
    for group in (*_GROUPS.values(), _DEPTHWISE):
        chosen = [i for i, layer in enumerate(layers) if _group(layer) == group]
        if chosen:
            axes.scatter(
                [x[i] for i in chosen],
                [y[i] for i in chosen],
                s=26,
                marker=group.marker,
                color=group.color,
                edgecolors="white",
                linewidths=0.5,
                alpha=0.85,
                label=group.label,
                zorder=2,
            )


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 2.5, max(values) * 2.5


def _log_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", zorder=0)
    axes.set_axisbelow(True)
