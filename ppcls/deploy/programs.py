"""Paddle's two formats of a compiled network: tracing it, reading its operations, writing it.

Paddle 2 traces into what is called the old IR here (files `.pdmodel`), Paddle 3 into PIR (files
`.json`); Paddle 3 can still be told to use the old one. Some functions of Paddle 3, such as
`paddle.sum` and `paddle.argmax`, trace into PIR alone.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
from paddle import nn
from paddle.static import InputSpec

from ppcls.deploy.old_ir import traceable
from ppcls.utils.errors import JobError

_PIR_FLAG = "FLAGS_enable_pir_api"


def has_pir() -> bool:
    """Whether this Paddle traces into PIR: Paddle 3 does, unless its flag says otherwise."""
    return bool(paddle.get_flags(_PIR_FLAG)[_PIR_FLAG])


@contextlib.contextmanager
def old_ir() -> Iterator[None]:
    """Trace and write in Paddle 2's format inside the block."""
    if not has_pir():
        yield
        return
    with paddle.pir_utils.DygraphOldIrGuard(), traceable():
        yield


@dataclass(frozen=True)
class Operation:
    """One operation of a traced network.

    values, parameters: what it reads: names of intermediate results, and of the network's own
    parameters. outputs: names of the results it makes.
    """

    kind: str
    values: list[str]
    parameters: list[str]
    outputs: list[str]


def trace(network: nn.Layer, inputs: Sequence[InputSpec]) -> tuple[list[Operation], list[str]]:
    """Return all operations of `network` in evaluation, and the names of its results."""
    static = paddle.jit.to_static(network.forward, input_spec=list(inputs), full_graph=True)
    concrete = static.concrete_program
    results = [out for out in concrete.outputs if out is not None]
    if has_pir():
        operations = list(_pir_operations(concrete.main_program.global_block()))
        return operations, [_pir_name(value) for value in results]
    names = {parameter.name for parameter in network.parameters(include_sublayers=True)}
    blocks = concrete.main_program.blocks
    operations = [_old_operation(op, names) for block in blocks for op in block.ops]
    return operations, [variable.name for variable in results]


def _pir_operations(block: Any) -> Iterator[Operation]:
    for op in block.ops:
        if op.name() == "builtin.parameter":
            continue
        values, parameters = [], []
        for value in filter(lambda value: value.initialized(), op.operands_source()):
            source = value.get_defining_op()  # none for what a nested block is given
            if source is not None and source.name() == "builtin.parameter":
                parameters.append(source.attrs()["parameter_name"])
            else:
                values.append(_pir_name(value))
        outputs = [_pir_name(value) for value in op.results()]
        yield Operation(op.name().removeprefix("pd_op."), values, parameters, outputs)
        for inner in op.blocks():
            yield from _pir_operations(inner)


def _pir_name(value: Any) -> str:
    return str(value.id)


def _old_operation(op: Any, parameter_names: set[str]) -> Operation:
    read = [name for slot in op.input_names for name in op.input(slot)]
    return Operation(
        op.type,
        [name for name in read if name not in parameter_names],
        [name for name in read if name in parameter_names],
        [name for slot in op.output_names for name in op.output(slot)],
    )


def save(network: nn.Layer, inputs: Sequence[InputSpec], folder: Path, stem: str) -> None:
    """Write STEM.pdmodel, on Paddle 3 also STEM.json, and STEM.pdiparams, which serves both.

    The network is saved as it evaluates. Raises JobError when it cannot be, or when the formats
    disagree about the order of the weights.
    """
    network.eval()
    old = folder / ".old"
    old.mkdir()
    with old_ir():
        _save(network, inputs, old / stem)
    _tidy(old / f"{stem}.pdmodel")
    if has_pir():
        _save(network, inputs, folder / stem)
        weights = f"{stem}.pdiparams"
        if not filecmp.cmp(folder / weights, old / weights, shallow=False):
            raise JobError(
                f"{stem}.json and {stem}.pdmodel: expected the same weights, found others; "
                "Paddle wrote them in another order"
            )
    else:
        os.replace(old / f"{stem}.pdiparams", folder / f"{stem}.pdiparams")
    os.replace(old / f"{stem}.pdmodel", folder / f"{stem}.pdmodel")
    shutil.rmtree(old)


def _save(network: nn.Layer, inputs: Sequence[InputSpec], prefix: Path) -> None:
    try:
        with warnings.catch_warnings():
            # Of what its own functions do: a `place` that tracing does not have, old attributes.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"paddle\.")
            paddle.jit.save(network, str(prefix), input_spec=list(inputs))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise JobError(
            f"{prefix.name}: Paddle cannot compile or write the network: "
            f"{reason[-1] if reason else type(error).__name__}"
        ) from error


def _tidy(path: Path) -> None:
    """Take out of a `.pdmodel` the places in this machine's source files, and reshaped biases."""
    program = paddle.base.core.ProgramDesc(path.read_bytes())
    for block in map(program.block, range(program.num_blocks())):
        for op in map(block.op, range(block.op_size())):
            if op.has_attr("op_callstack"):
                op.remove_attr("op_callstack")
        _add_biases_along_channels(block)
    path.write_bytes(program.serialize_to_string())


def _add_biases_along_channels(block: Any) -> None:
    """Let additions take a bias of [C] as it is, along axis 1, where tracing reshaped it.

    The sums are the same. Paddle Inference knows a convolution with bias by this form alone; in the
    other it would neither fuse the two nor the activation behind them.
    """
    ops = [block.op(index) for index in range(block.op_size())]
    reshapes = {}
    for index, op in enumerate(ops):
        if op.type() == "reshape2" and _gives_channels(op, block):
            reshapes[op.output("Out")[0]] = index
    readers: dict[str, list[Any]] = {name: [] for name in reshapes}
    for op in ops:
        for name in readers.keys() & set(op.input_arg_names()):
            readers[name].append(op)
    spare = []
    for name, index in reshapes.items():
        if all(op.type() == "elementwise_add" and op.input("Y") == [name] for op in readers[name]):
            for op in readers[name]:
                op.set_input("Y", ops[index].input("X"))
                op._set_attr("axis", 1)
            spare.append(index)
    for index in reversed(spare):
        block._remove_op(index, index + 1)


def _gives_channels(reshape: Any, block: Any) -> bool:
    """Whether an operation reshapes a stored array [C] to [1, C, 1, 1]."""
    source = block.find_var(reshape.input("X")[0].encode())
    shape = list(reshape.attr("shape"))
    return (
        source is not None
        and source.persistable()
        and len(source.shape()) == 1
        and shape == [1, source.shape()[0], 1, 1]
    )
