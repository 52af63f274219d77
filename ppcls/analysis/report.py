"""Networks side by side and layer by layer: as JSON, as Markdown, and as one HTML page."""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Sequence
from typing import Any

from ppcls.analysis.cost import LOW_MOC, LayerCost
from ppcls.analysis.machine import Machine
from ppcls.analysis.pictures import Row, draw

Table = tuple[list[str], list[list[Any]]]  # head and lines

NOTES = (
    "One MAC is a multiplication with its addition. MACs are those of convolutions and of linear "
    "layers, apart; CIO is the elements convolutions read and write, MoC a convolution's MACs "
    "for each of them.",
    "Parameters are the trainable ones. Activations are the outputs of convolutions, linear "
    "layers and products. Peak memory is that of all tensors alive at once in an evaluation pass "
    "of Paddle's dygraph at batch 1, input included, weights and kernels' workspace not.",
)


def network_dict(row: Row, machine: Machine | None) -> dict[str, Any]:
    """The JSON of one network: with a timing, measured and predicted milliseconds too."""
    result = row.cost.to_dict()
    if machine is None or row.timing is None:
        return result
    times = row.timing.layers
    for entry, layer, seconds in zip(result["layers"], row.cost.layers, times, strict=True):
        entry["measured_ms"] = 1e3 * seconds
        entry["predicted_ms"] = 1e3 * machine.predict(layer)
    result["measured_ms"] = 1e3 * row.timing.total
    result["measured_layers_ms"] = 1e3 * sum(times)
    result["predicted_layers_ms"] = 1e3 * sum(map(machine.predict, row.cost.layers))
    result["repeats"] = row.timing.repeats
    return result


def networks_table(rows: Sequence[Row], machine: Machine | None) -> Table:
    """A line for each network; columns that are empty for all are left out."""
    head = ["network", "input", "parameters", "MACs conv", "MACs linear", "MACs products", "CIO"]
    head += ["MACs/CIO", "MoC min", "MoC median", "MoC max", "convolutions", f"MoC < {LOW_MOC}"]
    head += ["activations", "peak MiB", "all ms", "layers ms", "predicted ms"]
    lines = [_network_line(row, machine) for row in rows]
    used = [i for i in range(len(head)) if any(line[i] is not None for line in lines)]
    return [head[i] for i in used], [[line[i] for i in used] for line in lines]


def _network_line(row: Row, machine: Machine | None) -> list[Any]:
    cost, mocs = row.cost, row.cost.mocs
    line = [cost.name, "x".join(map(str, cost.input_shape)), cost.params]
    line += [cost.macs("conv"), cost.macs("linear"), cost.macs("matmul") or None, cost.cio]
    if mocs:
        line += [cost.macs("conv") / cost.cio, min(mocs), statistics.median(mocs), max(mocs)]
    else:
        line += [None] * 4
    line += [len(mocs), cost.below(LOW_MOC), cost.activations, cost.peak_bytes / 2**20]
    if machine is None or row.timing is None:
        return [*line, None, None, None]
    predicted = sum(map(machine.predict, cost.layers))
    return [*line, *(1e3 * t for t in (row.timing.total, sum(row.timing.layers), predicted))]


def layers_table(row: Row, machine: Machine | None) -> Table:
    """A line for each convolution, linear layer and product, in the order of execution."""
    head = ["#", "layer", "type", "kernel", "stride", "groups", "input", "output", "MACs"]
    head += ["CIO", "MoC"]
    lines = [_layer_line(number, layer) for number, layer in enumerate(row.cost.layers, 1)]
    if machine is not None and row.timing is not None:
        head += ["measured ms", "predicted ms"]
        for line, layer, seconds in zip(lines, row.cost.layers, row.timing.layers, strict=True):
            line += [1e3 * seconds, 1e3 * machine.predict(layer)]
    return head, lines


def _layer_line(number: int, layer: LayerCost) -> list[Any]:
    name = layer.name if layer.call == 1 else f"{layer.name} (call {layer.call})"
    sizes = (layer.kernel, layer.stride)
    line: list[Any] = [number, name, layer.op if layer.is_layer else f"{layer.op} (function)"]
    line += ["x".join(map(str, size)) for size in sizes]
    line += [
        layer.groups,
        *("x".join(map(str, s)) for s in (layer.input_shape, layer.output_shape)),
    ]
    return [*line, layer.macs, layer.cio, layer.moc]


def markdown(table: Table) -> str:
    """The table in Markdown, numbers to the right."""
    head, lines = table
    cells = [head, *([_text(value) for value in line] for line in lines)]
    right = _number_columns(table)
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
    padded = [
        [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        for row in cells
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (padded[0], rule, *padded[1:]))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 0.1 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def html_page(rows: Sequence[Row], machine: Machine) -> str:
    """One page that needs nothing else: pictures inside, tables that sort on a click."""
    sections = "\n".join(_section(row, machine) for row in rows)
    notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in NOTES)
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>What networks cost</title><style>{_STYLE}</style></head>
<body>
<h1>What networks cost</h1>
<p>Ceilings of this machine: {html.escape(str(machine))}; balance {machine.balance:.3g}
MACs for each element. A click on a column's head sorts by it.</p>
{_html_table(networks_table(rows, machine))}
{notes}
{sections}
<script>{_SCRIPT}</script>
</body></html>
"""


def _section(row: Row, machine: Machine) -> str:
    name = html.escape(row.cost.name)
    picture = base64.b64encode(draw([row], machine)).decode()
    warnings = "".join(f"<p class=warning>{html.escape(text)}</p>" for text in row.cost.uncounted)
    table = _html_table(layers_table(row, machine))
    return f"""<h2>{name}</h2>{warnings}
<img alt="Roofline, MACs against CIO, and MoC of the layers of {name}" \
src="data:image/png;base64,{picture}">
<details><summary>{len(row.cost.layers)} layers</summary>{table}</details>"""


def _html_table(table: Table) -> str:
    head, lines = table
    kinds = ["class=number" if is_number else "" for is_number in _number_columns(table)]
    titles = "".join(
        f"<th {kind}><button>{html.escape(title)}</button></th>"
        for title, kind in zip(head, kinds, strict=True)
    )
    body = "\n".join("<tr>" + "".join(map(_cell, line)) + "</tr>" for line in lines)
    content = f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
    return f"<div class=wide><table>{content}</table></div>"


def _number_columns(table: Table) -> list[bool]:
    head, lines = table
    return [any(isinstance(line[i], (int, float)) for line in lines) for i in range(len(head))]


def _cell(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f'<td class=number data-value="{value!r}">{_text(value)}</td>'
    return f"<td>{html.escape(_text(value))}</td>"


_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; }
img { max-width: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
td, th { padding: 2px 8px; border-bottom: 1px solid #ddd; white-space: nowrap; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
th button { font: inherit; font-weight: bold; border: 0; background: none; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.warning { color: #A33C00; font-weight: bold; }
"""

_SCRIPT = """
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => {
    const cell = row.cells[head.cellIndex];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  const order = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  const rows = [...body.rows].sort((a, b) => order(key(a), key(b)) * (down ? -1 : 1));
  body.append(...rows);
}));
"""
