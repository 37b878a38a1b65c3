"""Write a network as Verilog: its steps, its layers, and the module that runs them in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tracetorch.export.c_code.files import comment, identifiers
from tracetorch.export.c_code.stages import Copy, Pointwise, Pool, Product, Sum, View
from tracetorch.export.verilog_code.arrangement import Arrangement
from tracetorch.export.verilog_code.circuit import Circuit, step_circuit
from tracetorch.export.verilog_code.layer import Layer, extended, module, written
from tracetorch.export.verilog_code.layers import (
    clear_layer,
    copy_layer,
    output_layer,
    pointwise_layer,
    reduce_layer,
)
from tracetorch.export.verilog_code.loops import number
from tracetorch.export.verilog_code.memories import MEMORY, Store, Table, address_bits, table
from tracetorch.export.verilog_code.products import product_layer
from tracetorch.export.verilog_code.step_module import step_module, step_text
from tracetorch.export.verilog_code.wires import Word


@dataclass(frozen=True)
class End:
    name: str  # of its ports
    label: str
    size: int
    store: Store

    @property
    def address(self) -> int:
        return address_bits(self.size)


@dataclass(frozen=True)
class Network:
    """Text of a network in Verilog, and what it consists of."""

    modules: Mapping[str, str]  # text of each module, by name
    layers: tuple[Layer, ...]  # in turn; the last one makes ready for the next step
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    stores: tuple[Store, ...]  # memories
    tables: tuple[Table, ...]


def network(arrangement: Arrangement, notes: Sequence[str]) -> Network:
    stores, stages = arrangement.stores, arrangement.program.stages
    steps = _Steps(arrangement)
    layers: list[Layer] = []
    labels = identifiers([f"{i}_{each.path}" for i, each in enumerate(stages)], "layer_")
    for name, stage in zip(labels, stages, strict=True):
        if isinstance(stage, Pointwise):
            layers.append(steps.layer(name, stage))
            continue
        source, target = stores[stage.source.array], stores[stage.target.array]
        if isinstance(stage, Product):
            layers.append(product_layer(name, stage, source, target))
        elif isinstance(stage, Copy):
            layers.append(copy_layer(name, stage, source, target))
        elif isinstance(stage, (Pool, Sum)):
            layers.append(reduce_layer(name, stage, source, target))
    views = {label: View(a, (a.size,), (1,)) for label, a in arrangement.program.inputs.items()}
    inputs, outputs = (
        tuple(
            End(name, label, view.size, stores[view.array])
            for name, (label, view) in zip(identifiers(list(ends)), ends.items(), strict=True)
        )
        for ends in (views, arrangement.outputs)
    )
    for end, view in zip(outputs, arrangement.outputs.values(), strict=True):
        layers.append(output_layer(f"output_{end.name}", end.store, view))
    often: dict[Store, Tensor | None] = {each.store: None for each in inputs}
    often |= {stores[a]: values for a, values in arrangement.sums.items()}
    once = {stores[a]: values for a, values in arrangement.states.items()}
    layers.append(clear_layer("clear", often, once))
    constants = {
        stores[a]: table(stores[a].name, values, stores[a].word.bits, stores[a].lanes)
        for a, values in arrangement.tables.items()
    }
    tables = [*constants.values(), *(one for each in layers for one in each.tables)]
    modules = {"network": _top(layers, inputs, outputs, list(stores.values()), constants)}
    modules["tt_memory"] = MEMORY
    modules |= {name: step_module(name, circuit) for name, circuit in steps.found.items()}
    for each in layers:
        modules |= {each.name: each.text, **each.parts}
    modules |= {each.name: each.module for each in tables}
    head = "".join(f"// {comment(note)}\n" for note in notes)
    return Network(
        {name: f"{head}{text}" for name, text in modules.items()}, tuple(layers), inputs,
        outputs, tuple(s for s in stores.values() if s not in constants), tuple(tables),
    )  # fmt: skip


class _Steps:
    """Modules of steps: equal ones are written once."""

    def __init__(self, arrangement: Arrangement) -> None:
        self.widths, self.stores = arrangement.widths, arrangement.stores
        self.names: dict[str, str] = {}  # by the text
        self.found: dict[str, Circuit] = {}

    def layer(self, name: str, stage: Pointwise) -> Layer:
        circuit = step_circuit(stage, self.widths)
        views = {**stage.reads, **stage.writes}
        step = self.names.setdefault(step_text(circuit), f"step_{len(self.names)}")
        self.found.setdefault(step, circuit)
        known = {each: self.stores[view.array] for each, view in views.items()}
        return pointwise_layer(name, stage, known, step, circuit.port_names)


def _top(
    layers: list[Layer],
    inputs: tuple[End, ...],
    outputs: tuple[End, ...],
    stores: list[Store],
    constants: Mapping[Store, Table],
) -> str:
    ports = ["input wire clk", "input wire reset", "output wire ready", "input wire step"]
    ports.append("output wire done")
    for end in inputs:
        ports += [f"input wire {end.name}_valid", f"output wire {end.name}_ready"]
        ports.append(f"input wire [{end.address - 1}:0] {end.name}_address")
        ports.append(f"input wire [{end.store.word.bits - 1}:0] {end.name}_value")
    for end in outputs:
        ports += [f"output wire {end.name}_valid", f"input wire {end.name}_ready"]
        ports.append(f"output wire [{end.address - 1}:0] {end.name}_address")
        sign = "signed " * end.store.word.signed
        ports.append(f"output wire {sign}[{end.store.word.bits - 1}:0] {end.name}_value")
    count = len(layers)
    bits = address_bits(count + 1)
    body = _control(count, bits)
    body += [f"wire [{store.width - 1}:0] data_{store.name};" for store in stores]
    for i, each in enumerate(layers):
        given = [f".clk(clk), .reset(reset), .start(start && turn == {number(bits, i)})"]
        given.append(f".done(finished[{i}])")
        for store in each.reads:
            body.append(f"wire [{store.address - 1}:0] read_{i}_{store.name};")
            given.append(f".{store.name}_read(read_{i}_{store.name})")
            given.append(f".{store.name}_data(data_{store.name})")
        for store in each.writes:
            body.append(f"wire [{store.lanes - 1}:0] write_{i}_{store.name};")
            body.append(f"wire [{store.address - 1}:0] to_{i}_{store.name};")
            body.append(f"wire [{store.width - 1}:0] value_{i}_{store.name};")
            given += [f".{store.name}_{n}({n}_{i}_{store.name})" for n in ("write", "to", "value")]
        for end in outputs:
            if each.name == f"output_{end.name}":
                parts = ("valid", "ready", "address", "value")
                given += [f".{n}({end.name}_{n})" for n in parts]
        if each.name == "clear":
            given.append(".all(all)")
        body += [f"{each.name} run_{i} (", *(f"    {g}," for g in given[:-1])]
        body += [f"    {given[-1]}", ");"]
    for store in stores:
        body += _memory(store, layers, inputs, bits, constants.get(store))
    return module("network", "The network: events in, step, events out, done", ports, body)


def _control(count: int, bits: int) -> list[str]:
    """Return the lines that run so many layers in turn, the last one alone after a reset."""
    idle, clear = number(bits, count), number(bits, count - 1)
    return [
        "// Which layer works; the last number is that of none.",
        *(f"reg [{bits - 1}:0] turn;", "reg start;", "reg all;"),
        f"wire [{count - 1}:0] finished;",
        f"assign ready = turn == {idle} && !step;",
        f"assign done = finished[{count - 1}] && !all;",
        "always @(posedge clk)",
        "    if (reset) begin",
        f"        turn <= {clear};",
        "        start <= 1'b1;",
        "        all <= 1'b1;",
        "    end else begin",
        "        start <= 1'b0;",
        f"        if (turn == {idle}) begin",
        "            if (step) begin",
        f"                turn <= {number(bits, 0)};",
        "                start <= 1'b1;",
        "            end",
        "        end else if (|finished) begin",
        f"            turn <= turn + {number(bits, 1)};",
        f"            start <= turn != {clear};",
        "            all <= 1'b0;",
        "        end",
        "    end",
    ]


def _memory(
    store: Store, layers: list[Layer], inputs: tuple[End, ...], bits: int, constant: Table | None
) -> list[str]:
    """Return the lines of a memory: whose turn it is reads and writes it."""
    name = store.name
    readers = [i for i, each in enumerate(layers) if store in each.reads]

    def chosen(what: str, who: list[int]) -> str:
        tests = [f"turn == {number(bits, i)} ? {what}_{i}_{name} : " for i in who[:-1]]
        return "".join(tests) + f"{what}_{who[-1]}_{name}"

    read = chosen("read", readers) if readers else number(store.address, 0)
    lines: list[str] = []
    if constant is not None:
        return [*lines, constant.instance(read, f"data_{name}")]
    if not readers:
        lines.append(f"wire unused_{name} = &{{1'b0, data_{name}}};")
    writers = [i for i, each in enumerate(layers) if store in each.writes]
    ports = {n: chosen(n, writers) for n in ("write", "to", "value") if writers}
    for end in inputs:
        if end.store is store:
            # an address may be shorter than a place, which counts lanes that hold nothing
            address = extended(f"{end.name}_address", Word(end.address, False), store.place)
            lines.append(f"wire [{store.place - 1}:0] place_{end.name} = {address};")
            lines.append(f"assign {end.name}_ready = ready;")
            when, idle = f"{end.name}_valid && {end.name}_ready", number(bits, len(layers))
            given = written(store, when, f"place_{end.name}", f"{end.name}_value")
            ports = {n: f"turn == {idle} ? {given[n]} : {ports[n]}" for n in given}
    lines += [
        f"tt_memory #({store.words}, {store.address}, {store.word.bits}, {store.lanes}) {name} (",
        f"    .clk(clk), .read({read}), .data(data_{name}),",
        f"    .write({ports['write']}),",
        f"    .to({ports['to']}),",
        f"    .value({ports['value']})",
        ");",
    ]
    return lines
