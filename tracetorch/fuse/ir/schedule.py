"""Schedule a plan: choose its loops over time and lanes, once for all printers, as kernels.

Time is the innermost loop: a block of lanes walks through all of it, its states in registers.
Forward stores the states at the beginning of every segment but the first (``checkpoints``), from
where backward recomputes those before each step (``past``), the last one first. In a recurrence,
``x[t] = input[t] + bias + sum_j output[t - 1 - j] @ matrix[j]``, time is the outer loop: a step of
all lanes of the task, then its output times every matrix (``taps``), added to ``drive``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

from tracetorch.fuse.ir import kernel as ir
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.kernel import Buffer, Operand, Role, Schedule, Size, Var
from tracetorch.fuse.ir.plan import Plan, RecurrentPlan

LANE, NEURON = ir.Axis.LANE, ir.Axis.NEURON
LANES, NEURONS = ir.Extent.LANES, ir.Extent.NEURONS


class _Writer:
    """Write the parts that the kernels of a plan share."""

    def __init__(
        self, name: str, title: str, plan: Plan, graphs: Sequence[Graph], *sizes: str
    ) -> None:
        dtype = ir.Dtype(str(plan.program.dtype).removeprefix("torch."))
        self.k = ir.KernelBuilder(name, f"{title} of {plan.program.layer}", dtype)
        self.plan, self.graphs, self.program = plan, graphs, plan.program
        read = set().union(*(graph.reads() for graph in graphs))
        self.read = [f"p_{name}" for name in self.program.params if f"p_{name}" in read]
        self.size = {each: self.k.size(each) for each in sizes}
        self.kept = list(enumerate(plan.recomputed))

    # Memory

    def each(self, role: Role, names: Iterable[str], *shape: ir.Dimension) -> dict[str, Buffer]:
        return {name: self.k.buffer(role, name, shape) for name in names}

    def sequences(self, role: Role, names: Iterable[str]) -> dict[str, Buffer]:
        return self.each(role, names, Size(self.size["steps"]), LANES)

    def sequence(self, role: Role, name: str = "") -> Buffer:
        return self.k.buffer(role, name, (Size(self.size["steps"]), LANES))

    def declare_gradients(self) -> None:
        """Declare the sums of parameters' gradients, and the states of a segment."""
        trained, kept = max(1, len(self.plan.trained)), max(1, len(self.kept))
        self.sums = self.k.buffer(Role.SUMS, "", (trained, LANES), ir.Dtype.FLOAT64)
        self.past = self.k.buffer(Role.PAST, "", (Size(self.size["every"]), kept, LANES))

    def declare_constants(self) -> None:
        self.params = self.each(Role.PARAMETER, self.program.params, NEURONS)
        size = max(1, len(self.plan.literals))
        self.literals = self.k.buffer(Role.LITERALS, "", (size,))

    def declare_checkpoints(self) -> None:
        """Declare the states at the beginning of every segment but the first."""
        shape = (Size(self.size["segments"], -1), max(1, len(self.kept)), LANES)
        self.checkpoints = self.k.buffer(Role.CHECKPOINTS, "", shape)

    def scratch(self, names: Sequence[str], name: str = "") -> Buffer:
        """Declare memory for one value of each name, which stays between two loops over lanes."""
        return self.k.buffer(Role.SCRATCH, name, (max(1, len(names)), LANES))

    # Values

    def numbers(self) -> dict[str, Operand]:
        """Load the literals that the graphs read; return them by name."""
        used = {number for graph in self.graphs for number in graph.literals()}
        numbers = [(i, n.hex()) for i, n in enumerate(self.plan.literals) if n.hex() in used]
        return {name: self.k.load(self.literals, (i,), "c") for i, name in numbers}

    def parameters(self) -> dict[str, Operand]:
        return {n: self.k.load(self.params[n[2:]], (NEURON,), n) for n in self.read}

    def compute(self, graph: Graph, env: Mapping[str, Operand]) -> dict[str, Operand]:
        """Write the lines of a graph; return its outputs by name."""
        env = dict(env)

        def operand(value: str | float | bool) -> Operand:
            if isinstance(value, str):
                return env[value]
            # 0.0 and 1.0 are not among the literals
            return value if isinstance(value, bool) else env.get(value.hex(), value)

        for line in graph.lines:
            env[line.name] = self.k.op(line.op, *map(operand, line.args))
        return {name: operand(value) for name, value in graph.outputs.items()}

    def load(self, buffers: Mapping[str, Buffer], graph: Graph, index: Var) -> dict[str, Operand]:
        read = graph.reads()
        return {n: self.k.load(b, (index, LANE), n) for n, b in buffers.items() if n in read}

    def segment(self, index: Var) -> list[Var]:
        """Return the first step of a segment, and the one behind its last."""
        every = self.size["every"]
        begin = self.k.op("mul", index, every)
        return [begin, self.k.op("min", self.k.op("add", begin, every), self.size["steps"])]

    def put(self, scratch: Buffer, values: Iterable[Operand], start: int = 0) -> None:
        for i, value in enumerate(values, start):
            self.k.store(scratch, (i, LANE), value)

    def begin(self, starts: Mapping[str, Buffer], name: str = "start_") -> dict[str, Operand]:
        """Load the states before the first step."""
        return {f"s_{n}": self.k.load(b, (LANE,), f"{name}{n}") for n, b in starts.items()}

    def begin_in(
        self, scratch: Buffer, starts: Mapping[str, Buffer], parameters: Buffer, name: str = "start"
    ) -> None:
        """Put what a walk begins with into scratch: the parameters too, which take divisions."""
        self.put(scratch, [self.k.load(b, (LANE,), name) for b in starts.values()])
        self.put(parameters, self.parameters().values())

    def end(self, ends: Mapping[str, Buffer], values: Mapping[str, Operand], prefix: str) -> None:
        """Store what a walk ends with."""
        for name, buffer in ends.items():
            self.k.store(buffer, (LANE,), values[f"{prefix}{name}"])

    def get(self, scratch: Buffer, names: Iterable[str], start: int = 0) -> dict[str, Operand]:
        return {n: self.k.load(scratch, (i, LANE), n) for i, n in enumerate(names, start)}

    # Segments

    def store_checkpoint(self, segment: Var, states: Mapping[str, Operand]) -> None:
        with self.k.when(self.k.op("gt", segment, 0)):
            before = self.k.op("sub", segment, 1)
            for i, name in self.kept:
                self.k.store(self.checkpoints, (before, i, LANE), states[f"s_{name}"])

    def recompute(
        self,
        starts: Mapping[str, Buffer],
        inputs: Mapping[str, Buffer],
        env: Mapping[str, Operand],
        segment: Var,
        bounds: Sequence[Var],
    ) -> None:
        """Fill ``past`` with the states before each step of a segment."""
        k, past, (begin, end) = self.k, self.past, bounds
        if not self.kept:
            return
        k.append(ir.Barrier())
        with k.when(k.op("eq", segment, 0)):
            for i, name in self.kept:
                k.store(past, (0, i, LANE), k.load(starts[name], (LANE,), f"start_{name}"))
        with k.when(k.op("gt", segment, 0)):
            before = k.op("sub", segment, 1)
            for i, name in self.kept:
                value = k.load(self.checkpoints, (before, i, LANE), f"checkpoint_{name}")
                k.store(past, (0, i, LANE), value)
        k.append(ir.Barrier())
        states = {f"s_{n}": k.load(past, (0, i, LANE), f"first_{n}") for i, n in self.kept}
        # nothing reads the states behind the last step
        with k.loop("t", begin, k.op("sub", end, 1), states) as walk:
            now = self.load(inputs, self.plan.advance, walk.index)
            results = self.compute(self.plan.advance, {**env, **now, **walk.carried})
            after = k.op("add", k.op("sub", walk.index, begin), 1)
            for i, name in self.kept:
                walk.next[f"s_{name}"] = results[f"next_{name}"]
                k.store(past, (after, i, LANE), results[f"next_{name}"])
        k.append(ir.Barrier())

    def load_past(self, index: Var, begin: Var) -> dict[str, Operand]:
        place = self.k.op("sub", index, begin)
        return {f"s_{n}": self.k.load(self.past, (place, i, LANE), f"s_{n}") for i, n in self.kept}

    def present(self, index: Var) -> dict[str, Operand]:
        """Return which cotangents are present at a step, by name; they come and go from the end."""
        k, period = self.k, self.plan.presences.period
        either, found = functools.partial(k.op, "or"), dict[str, Operand]()
        for name, when in self.plan.flags.items():
            start = len(when) - period  # where they begin to go round
            behind = k.op("sub", k.op("sub", self.size["steps"], 1), index)
            each = [k.op("eq", behind, i) for i in range(start) if when[i]]
            residues = [i for i in range(period) if when[start + i]]
            if residues:
                turning = k.op("ge", behind, start)
                if period > 1:
                    residue = k.op("rem", k.op("add", behind, -start % period), period)
                    now = [k.op("eq", residue, i) for i in residues]
                    turning = k.op("and", turning, functools.reduce(either, now))
                each.append(turning)
            found[name] = functools.reduce(either, each)
        return found

    def add_sums(self, totals: Mapping[str, Operand]) -> None:
        """Add a segment's sums to those of all: the long sum over time and rows needs float64."""
        for i, name in enumerate(self.plan.trained):
            total = totals[f"sum_{name}"]
            if self.k.dtype is not ir.Dtype.FLOAT64:
                total = self.k.op("double", total)
            self.k.store(self.sums, (i, LANE), total)


_TIME = ("steps", "every", "segments")


# A sequence


def forward_kernel(plan: Plan, *, in_chunks: bool = False) -> Schedule:
    """Return the forward pass; ``in_chunks``: ``chunk`` steps of one block, then of the next."""
    program, names = plan.program, [f"s_{name}" for name in plan.program.states]
    sizes = (*_TIME, *(("chunk", "chunks") if in_chunks else ()))
    w = _Writer("forward", "forward pass", plan, [program.forward], *sizes)
    k, size = w.k, w.size
    inputs = w.sequences(Role.INPUT, program.inputs)
    w.declare_constants()
    starts = w.each(Role.START, program.states, LANES)
    output = w.sequence(Role.OUTPUT)
    ends = w.each(Role.END, program.states, LANES)
    records = w.sequences(Role.RECORD, plan.record)
    w.declare_checkpoints()

    def walk(
        env: Mapping[str, Operand], states: Mapping[str, Operand], first: Var, last: Var
    ) -> dict[str, Operand]:
        """Write the loop over some steps; return the states behind them."""
        with k.loop("t", first, last, states) as steps:
            now = w.load(inputs, program.forward, steps.index)
            results = w.compute(program.forward, {**env, **now, **steps.carried})
            k.store(output, (steps.index, LANE), results["output"])
            for name, record in records.items():
                k.store(record, (steps.index, LANE), results[f"next_{name}"])
            steps.next |= {f"s_{name}": results[f"next_{name}"] for name in program.states}
        return {name: steps.results[name] for name in names}

    if not in_chunks:
        with k.lanes():
            env = w.numbers() | w.parameters()
            with k.loop("segment", 0, size["segments"], w.begin(starts)) as outer:
                begin, end = w.segment(outer.index)
                if plan.recomputed:
                    w.store_checkpoint(outer.index, outer.carried)
                outer.next |= walk(env, outer.carried, begin, end)
            w.end(ends, outer.results, "s_")
        return k.kernel()
    scratch, parameters = w.scratch(names), w.scratch(w.read, "parameters")
    with k.lanes():
        w.begin_in(scratch, starts, parameters)
    with k.loop("segment", 0, size["segments"]) as outer:
        begin, end = w.segment(outer.index)
        if plan.recomputed:
            with k.lanes():
                w.store_checkpoint(outer.index, w.get(scratch, names))
        with k.loop("chunk", 0, size["chunks"]) as chunk:
            first = k.op("add", begin, k.op("mul", chunk.index, size["chunk"]))
            last = k.op("min", k.op("add", first, size["chunk"]), end)
            with k.lanes():
                env = w.numbers() | w.get(parameters, w.read)
                w.put(scratch, walk(env, w.get(scratch, names), first, last).values())
    with k.lanes():
        w.end(ends, w.get(scratch, names), "s_")
    return k.kernel()


def backward_kernel(plan: Plan) -> Schedule:
    """Return the backward pass: gradients of inputs and initial states, sums of parameters'."""
    program, states = plan.program, plan.program.states
    w = _Writer("backward", "backward pass", plan, [plan.backward, plan.advance], *_TIME)
    k = w.k
    inputs = w.sequences(Role.INPUT, program.inputs)
    w.declare_constants()
    w.declare_checkpoints()
    starts = w.each(Role.START, plan.recomputed, LANES)
    g_output = w.sequence(Role.GRAD_OUTPUT)
    g_ends = w.each(Role.GRAD_END, states, LANES)
    g_records = w.sequences(Role.GRAD_RECORD, plan.record)
    d_inputs = w.sequences(Role.GRAD_INPUT, plan.differentiated)
    d_starts = w.each(Role.GRAD_START, states, LANES)
    w.declare_gradients()
    with k.lanes():
        env = w.numbers() | w.parameters()
        cotangents: dict[str, Operand] = {
            f"g_{name}": k.load(b, (LANE,), f"g_end_{name}") for name, b in g_ends.items()
        }
        with k.loop("segment", 0, w.size["segments"], cotangents, reverse=True) as outer:
            begin, end = w.segment(outer.index)
            w.recompute(starts, inputs, env, outer.index, (begin, end))
            zeros: dict[str, Operand] = {f"sum_{name}": 0.0 for name in plan.trained}
            with k.loop("t", begin, end, {**outer.carried, **zeros}, reverse=True) as walk:
                now = dict(walk.carried)
                # a recorded state has two uses, the next step and the trajectory
                for name, buffer in g_records.items():
                    recorded = k.load(buffer, (walk.index, LANE), f"h_{name}")
                    now[f"g_{name}"] = k.op("add", now[f"g_{name}"], recorded)
                before = w.load_past(walk.index, begin)
                given = w.load({**inputs, "g_output": g_output}, plan.backward, walk.index)
                given |= w.present(walk.index)
                results = w.compute(plan.backward, {**env, **now, **before, **given})
                for name, buffer in d_inputs.items():
                    k.store(buffer, (walk.index, LANE), results[f"d_{name}"])
                for name in plan.trained:
                    total = k.op("add", walk.carried[f"sum_{name}"], results[f"d_p_{name}"])
                    walk.next[f"sum_{name}"] = total
                walk.next |= {f"g_{name}": results[f"d_s_{name}"] for name in states}
            w.add_sums(walk.results)
            outer.next |= {f"g_{name}": walk.results[f"g_{name}"] for name in states}
        w.end(d_starts, outer.results, "g_")
    return k.kernel()


def reach_kernel(plan: Plan) -> Schedule:
    """Return where a cotangent of the output reaches anything: not where a surrogate is 0."""
    program = plan.program
    names = [f"d_{n}" for n in (*program.inputs, *(f"s_{s}" for s in program.states))]
    names += [f"d_p_{n}" for n in plan.trained]
    graph = program.graph.select([*names, *(f"next_{n}" for n in program.states)])
    w = _Writer("reach", "reach of the output's cotangent", plan, [graph], *_TIME)
    k = w.k
    inputs = w.sequences(Role.INPUT, program.inputs)
    w.declare_constants()
    starts = w.each(Role.START, program.states, LANES)
    output = w.sequence(Role.OUTPUT)
    # a vector-Jacobian product is linear
    cotangents: dict[str, Operand] = {**{f"g_{n}": 0.0 for n in program.states}, "g_output": 1.0}
    with k.lanes():
        env = w.numbers() | w.parameters() | cotangents
        with k.loop("t", 0, w.size["steps"], w.begin(starts)) as walk:
            now = w.load(inputs, graph, walk.index)
            results = w.compute(graph, {**env, **now, **walk.carried})
            reached = [k.op("ne", results[name], 0.0) for name in names]
            some = functools.reduce(functools.partial(k.op, "or"), reached)
            k.store(output, (walk.index, LANE), k.op("float", some))
            walk.next |= {f"s_{name}": results[f"next_{name}"] for name in program.states}
    return k.kernel()


# One step


def step_kernel(plan: Plan) -> Schedule:
    """Return one step: output and next states."""
    program = plan.program
    w = _Writer("step", "one step", plan, [program.forward])
    k = w.k
    w.declare_constants()
    inputs = w.each(Role.INPUT, program.inputs, LANES)
    output = k.buffer(Role.OUTPUT, "", (LANES,))
    starts = w.each(Role.START, program.states, LANES)
    ends = w.each(Role.END, program.states, LANES)
    with k.lanes():
        env = w.numbers() | w.parameters()
        env |= {name: k.load(buffer, (LANE,), name) for name, buffer in inputs.items()}
        env |= w.begin(starts, "s_")
        results = w.compute(program.forward, env)
        k.store(output, (LANE,), results["output"])
        w.end(ends, results, "next_")
    return k.kernel()


# A linear recurrence


def recurrent_forward_kernel(plan: RecurrentPlan) -> Schedule:
    """Return the forward pass in a linear recurrence."""
    program, names = plan.program, [f"s_{name}" for name in plan.program.states]
    title = "forward pass in a linear recurrence"
    w = _Writer("forward", title, plan, [program.forward], *_TIME, "taps")
    k, steps, taps = w.k, w.size["steps"], w.size["taps"]
    given = w.sequence(Role.INPUT, "given")
    w.declare_constants()
    matrix = k.buffer(Role.MATRIX, "", (Size(taps), NEURONS, NEURONS))
    bias = k.buffer(Role.BIAS, "", (NEURONS,))
    drive = w.sequence(Role.DRIVE)
    first = k.buffer(Role.FIRST_OUTPUT, "", (Size(taps), LANES))
    output = w.sequence(Role.OUTPUT)
    last = k.buffer(Role.LAST_OUTPUT, "", (LANES,))
    starts = w.each(Role.START, program.states, LANES)
    ends = w.each(Role.END, program.states, LANES)
    w.declare_checkpoints()
    scratch, parameters = w.scratch(names), w.scratch(w.read, "parameters")
    with k.lanes():
        w.begin_in(scratch, starts, parameters)
    with k.loop("past", 0, taps) as walk:
        # the oldest output reaches the first step, and no other, with the last matrix
        skipped = k.op("sub", k.op("sub", taps, 1), walk.index)
        count = k.op("min", k.op("add", walk.index, 1), steps)
        source = (first, (walk.index, LANE), matrix)
        k.append(ir.Multiply(drive, (0, LANE), *source, skipped, count))
    with k.loop("segment", 0, w.size["segments"]) as outer:
        begin, end = w.segment(outer.index)
        if plan.recomputed:
            with k.lanes():
                w.store_checkpoint(outer.index, w.get(scratch, names))
        with k.loop("t", begin, end) as walk:
            t = walk.index
            with k.lanes():
                env = w.numbers() | w.get(parameters, w.read)
                shift = k.load(bias, (NEURON,), "bias")
                fed = k.op("add", k.load(drive, (t, LANE), "fed"), shift)
                x = k.op("add", k.load(given, (t, LANE), "given"), fed)
                k.store(drive, (t, LANE), x)
                results = w.compute(program.forward, {**env, **w.get(scratch, names), "x": x})
                k.store(output, (t, LANE), results["output"])
                w.put(scratch, [results[f"next_{name}"] for name in program.states])
            left = k.op("sub", k.op("sub", steps, 1), t)
            following, count = k.op("add", t, 1), k.op("min", taps, left)
            source = (output, (t, LANE), matrix)
            k.append(ir.Multiply(drive, (following, LANE), *source, 0, count))
    with k.lanes():
        w.end(ends, w.get(scratch, names), "s_")
        final = k.op("sub", steps, 1)
        k.store(last, (LANE,), k.load(output, (final, LANE), "last"))
    return k.kernel()


def recurrent_backward_kernel(plan: RecurrentPlan) -> Schedule:
    """Return the backward pass in a linear recurrence, which recomputes its outputs."""
    program, states = plan.program, plan.program.states
    title, graphs = "backward pass in a linear recurrence", [plan.backward, plan.advance]
    w = _Writer("backward", title, plan, graphs, *_TIME, "taps")
    k, steps, taps = w.k, w.size["steps"], w.size["taps"]
    inputs = w.sequences(Role.INPUT, program.inputs)
    w.declare_constants()
    matrix = k.buffer(Role.MATRIX, "", (Size(taps), NEURONS, NEURONS))
    w.declare_checkpoints()
    starts = w.each(Role.START, plan.recomputed, LANES)
    g_output = w.sequence(Role.GRAD_OUTPUT)
    g_last = k.buffer(Role.GRAD_LAST_OUTPUT, "", (LANES,))
    g_ends = w.each(Role.GRAD_END, states, LANES)
    d_x = w.sequence(Role.GRAD_INPUT, "x")
    output = w.sequences(Role.OUTPUT, [""] * plan.needs_weight_gradient)
    d_first = k.buffer(Role.GRAD_FIRST_OUTPUT, "", (Size(taps), LANES))
    d_starts = w.each(Role.GRAD_START, states, LANES)
    w.declare_gradients()
    # cotangents of the states, then sums of parameters' gradients
    totals, count_of_states = [f"sum_{name}" for name in plan.trained], len(states)
    carried = [*(f"g_{name}" for name in states), *totals]
    scratch, parameters = w.scratch(carried), w.scratch(w.read, "parameters")

    with k.lanes():
        w.begin_in(scratch, g_ends, parameters, "g_end")
        # of these no product overwrites
        open_ends = k.op("sub", steps, k.op("min", taps, steps))
        with k.loop("i", open_ends, steps) as walk:
            k.store(d_x, (walk.index, LANE), 0.0)
        with k.loop("i", 0, taps) as walk:
            k.store(d_first, (walk.index, LANE), 0.0)
        final = k.op("sub", steps, 1)
        k.append(ir.Barrier())  # what follows takes the place of a zero, and is read again
        k.store(d_x, (final, LANE), k.load(g_last, (LANE,), "g_last"))
        k.append(ir.Barrier())
    with k.loop("segment", 0, w.size["segments"], reverse=True) as outer:
        begin, end = w.segment(outer.index)
        with k.lanes():
            env = w.numbers() | w.get(parameters, w.read)
            w.recompute(starts, inputs, env, outer.index, (begin, end))
            w.put(scratch, [0.0] * len(totals), count_of_states)
        with k.loop("t", begin, end, reverse=True) as walk:
            t = walk.index
            with k.lanes():
                env, now = (w.numbers() | w.get(parameters, w.read), w.get(scratch, carried))
                given = k.load(g_output, (t, LANE), "given")
                now["g_output"] = k.op("add", k.load(d_x, (t, LANE), "fed"), given)
                before, x = w.load_past(t, begin), w.load(inputs, plan.backward, t)
                x |= w.present(t)
                results = w.compute(plan.backward, {**env, **now, **before, **x})
                k.store(d_x, (t, LANE), results["d_x"])
                for buffer in output.values():
                    k.store(buffer, (t, LANE), results["output"])
                w.put(scratch, [results[f"d_s_{name}"] for name in states])
                for i, name in enumerate(plan.trained, count_of_states):
                    total = k.op("add", now[f"sum_{name}"], results[f"d_p_{name}"])
                    k.store(scratch, (i, LANE), total)
            preceding, count = k.op("sub", t, 1), k.op("min", taps, t)
            source = (d_x, (t, LANE), matrix)
            k.append(ir.Multiply(d_x, (preceding, LANE), *source, 0, count, reverse=True))
            newest, rest = k.op("sub", taps, 1), k.op("sub", taps, count)
            k.append(ir.Multiply(d_first, (newest, LANE), *source, count, rest, reverse=True))
        with k.lanes():
            w.add_sums(w.get(scratch, totals, count_of_states))
    with k.lanes():
        for i, buffer in enumerate(d_starts.values()):
            k.store(buffer, (LANE,), k.load(scratch, (i, LANE), "g_start"))
    return k.kernel()
