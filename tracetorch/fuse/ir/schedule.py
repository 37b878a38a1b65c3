"""Schedule a plan: choose its loops over time and lanes, once for all printers, as kernels.

Time is the innermost loop: a block of lanes walks through all of it, its states in registers. The
forward pass stores the states at the beginning of every segment but the first (``checkpoints``);
the backward pass visits segments from the last one, recomputes the states before each step of one
(``past``) from its checkpoint, and walks back through it. A segment is ``every`` steps.

In a linear recurrence, ``x[t] = input[t] + bias + sum_j output[t - 1 - j] @ matrix[j]``, the lanes
of a row are coupled, so time is the outer loop there: one step of all lanes of the task, whose
states are ``held`` in memory, then its output times every matrix, added to what the steps to come
are given. So a step is multiplied once, and its events are listed once, however many matrices there
are: ``taps``, one for each delay. Forward keeps ``drive``, the sum that the step is given; before
its step that memory holds the products so far. So does the input's gradient in backward, which goes
from each step to those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.kernel import (
    Axis,
    Buffer,
    Dtype,
    Extent,
    Kernel,
    KernelBuilder,
    Operand,
    Role,
    Size,
    Value,
)
from tracetorch.fuse.ir.plan import Plan, RecurrentPlan

LANE, NEURON = Axis.LANE, Axis.NEURON
LANES, NEURONS = Extent.LANES, Extent.NEURONS


class _Writer:
    """Write the parts that the kernels of a plan share.

    Args:
        name: of the kernel.
        title: what it does.
        plan: the plan.
        graphs: what it computes.
    """

    def __init__(self, name: str, title: str, plan: Plan, graphs: Sequence[Graph]) -> None:
        program = plan.program
        dtype = Dtype(str(program.dtype).removeprefix("torch."))
        self.k = KernelBuilder(name, f"{title} of {program.layer}", dtype)
        self.plan, self.graphs, self.program = plan, graphs, program
        self.read = set().union(*(graph.reads() for graph in graphs))

    def sizes(self) -> None:
        """Declare the lengths of time."""
        self.steps = self.k.size("steps")
        self.every = self.k.size("every")
        self.segments = self.k.size("segments")

    def chunk_sizes(self) -> None:
        """Declare the steps of a chunk, and how many of them a segment has."""
        self.chunk = self.k.size("chunk")
        self.chunks = self.k.size("chunks")

    def each(
        self,
        role: Role,
        names: Iterable[str],
        *shape: int | Size | Extent,
        dtype: Dtype | None = None,
    ) -> dict[str, Buffer]:
        """Declare a buffer for each name."""
        return {name: self.k.buffer(role, name, shape, dtype) for name in names}

    def declare_constants(self) -> None:
        """Declare parameters and literals."""
        self.params = self.each(Role.PARAMETER, self.program.params, NEURONS)
        size = max(1, len(self.plan.literals))
        self.literals = self.k.buffer(Role.LITERALS, "", (size,))

    def constants(self) -> dict[str, Operand]:
        """Load the literals and parameters that the graphs read; return them by name."""
        return self.numbers() | self.parameters()

    def numbers(self) -> dict[str, Operand]:
        """Load the literals that the graphs read; return them by name."""
        env: dict[str, Operand] = {}
        used = {number for graph in self.graphs for number in graph.literals()}
        for i, number in enumerate(self.plan.literals):
            if number.hex() in used:
                env[number.hex()] = self.k.load(self.literals, (i,), "c")
        return env

    def parameters(self) -> dict[str, Operand]:
        """Load the parameters that the graphs read; return them by name."""
        buffers = {f"p_{name}": buffer for name, buffer in self.params.items()}
        return {n: self.k.load(buffers[n], (NEURON,), n) for n in self.parameter_names()}

    def parameter_names(self) -> list[str]:
        """Return the names of the parameters that the graphs read."""
        return [f"p_{name}" for name in self.params if f"p_{name}" in self.read]

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

    def load_inputs(
        self, inputs: Mapping[str, Buffer], graph: Graph, index: Value
    ) -> dict[str, Operand]:
        """Load the inputs of a step that a graph reads."""
        read = graph.reads()
        return {n: self.k.load(b, (index, LANE), n) for n, b in inputs.items() if n in read}

    def bounds(self, segment: Value) -> tuple[Value, Value]:
        """Return the first step of a segment, and the one behind its last."""
        begin = self.k.op("mul", segment, self.every)
        return begin, self.k.op("min", self.k.op("add", begin, self.every), self.steps)

    def chunk_bounds(self, index: Value, begin: Value, end: Value) -> tuple[Value, Value]:
        """Return the first step of a chunk of a segment, and the one behind its last."""
        first = self.k.op("add", begin, self.k.op("mul", index, self.chunk))
        return first, self.k.op("min", self.k.op("add", first, self.chunk), end)

    def hold(self, names: Sequence[str]) -> Buffer:
        """Declare memory for one value of each name, which stays between two loops over lanes."""
        return self.k.buffer(Role.HELD, "", (max(1, len(names)), LANES))

    def keep(self, held: Buffer, values: Iterable[Operand]) -> None:
        """Write what is held, in order."""
        for i, value in enumerate(values):
            self.k.store(held, (i, LANE), value)

    def held(self, held: Buffer, names: Iterable[str]) -> dict[str, Operand]:
        """Read what is held, by name."""
        return {n: self.k.load(held, (i, LANE), n) for i, n in enumerate(names)}

    def hold_parameters(self) -> Buffer:
        """Declare memory for the parameters of each lane: finding its neuron takes divisions."""
        count = max(1, len(self.parameter_names()))
        return self.k.buffer(Role.HELD, "parameters", (count, LANES))

    def held_constants(self, held: Buffer) -> dict[str, Operand]:
        """Load what :meth:`constants` does, parameters from where they are held."""
        return self.numbers() | self.held(held, self.parameter_names())

    def store_checkpoint(
        self, checkpoints: Buffer, segment: Value, states: Mapping[str, Operand]
    ) -> None:
        """Store the states at the beginning of a segment but the first."""
        with self.k.when(self.k.op("gt", segment, 0)):
            before = self.k.op("sub", segment, 1)
            for i, name in enumerate(self.plan.recomputed):
                self.k.store(checkpoints, (before, i, LANE), states[f"s_{name}"])

    def recompute(
        self,
        buffers: tuple[Mapping[str, Buffer], Buffer, Buffer, Mapping[str, Buffer]],
        env: Mapping[str, Operand],
        segment: Value,
        begin: Value,
        end: Value,
    ) -> None:
        """Fill ``past`` with the states before each step of a segment."""
        k, plan = self.k, self.plan
        starts, checkpoints, past, inputs = buffers
        kept = list(enumerate(plan.recomputed))
        if not kept:
            return
        k.barrier()
        with k.when(k.op("eq", segment, 0)):
            for i, name in kept:
                k.store(past, (0, i, LANE), k.load(starts[name], (LANE,), f"start_{name}"))
        with k.when(k.op("gt", segment, 0)):
            before = k.op("sub", segment, 1)
            for i, name in kept:
                value = k.load(checkpoints, (before, i, LANE), f"checkpoint_{name}")
                k.store(past, (0, i, LANE), value)
        k.barrier()
        states: dict[str, Operand] = {
            f"s_{name}": k.load(past, (0, i, LANE), f"first_{name}") for i, name in kept
        }
        # nothing reads the states behind the last step
        with k.loop("t", begin, k.op("sub", end, 1), states) as walk:
            now = self.load_inputs(inputs, plan.advance, walk.index)
            results = self.compute(plan.advance, {**env, **now, **walk.carried})
            after = k.op("add", k.op("sub", walk.index, begin), 1)
            for i, name in kept:
                walk.next[f"s_{name}"] = results[f"next_{name}"]
                k.store(past, (after, i, LANE), results[f"next_{name}"])
        k.barrier()

    def load_past(self, past: Buffer, index: Value, begin: Value) -> dict[str, Operand]:
        """Load the states before a step."""
        place = self.k.op("sub", index, begin)
        return {
            f"s_{name}": self.k.load(past, (place, i, LANE), f"s_{name}")
            for i, name in enumerate(self.plan.recomputed)
        }

    def add_sums(self, sums: Buffer, totals: Mapping[str, Operand]) -> None:
        """Add the sums of a segment to those of all, which are of float64.

        Short sums in float32 are exact enough and fast; the long one over time and rows is not.
        """
        for i, name in enumerate(self.plan.trained):
            total = totals[f"sum_{name}"]
            if self.k.dtype is not Dtype.FLOAT64:
                total = self.k.op("double", total)
            self.k.accumulate(sums, (i, LANE), total)


# A sequence


def forward_kernel(plan: Plan, *, in_chunks: bool = False) -> Kernel:
    """Return the forward pass: outputs, final states, trajectories, checkpoints.

    Args:
        plan: the plan.
        in_chunks: compute ``chunk`` steps of one block of lanes, then those of the next, and hold
            the states and parameters in memory meanwhile. Where a processor has few lanes at a
            time, memory is so walked in longer runs.
    """
    program, names = plan.program, plan.program.states
    w = _Writer("forward", "forward pass", plan, [program.forward])
    w.sizes()
    if in_chunks:
        w.chunk_sizes()
    k = w.k
    inputs = w.each(Role.INPUT, program.inputs, Size(w.steps), LANES)
    w.declare_constants()
    starts = w.each(Role.START, names, LANES)
    output = k.buffer(Role.OUTPUT, "", (Size(w.steps), LANES))
    ends = w.each(Role.END, names, LANES)
    records = w.each(Role.RECORD, plan.record, Size(w.steps), LANES)
    kept = max(1, len(plan.recomputed))
    checkpoints = k.buffer(Role.CHECKPOINTS, "", (Size(w.segments, -1), kept, LANES))

    def walk(
        env: Mapping[str, Operand], states: Mapping[str, Operand], first: Value, last: Value
    ) -> dict[str, Operand]:
        """Write the loop over some steps; return the states behind them."""
        with k.loop("t", first, last, states) as steps:
            now = w.load_inputs(inputs, program.forward, steps.index)
            results = w.compute(program.forward, {**env, **now, **steps.carried})
            k.store(output, (steps.index, LANE), results["output"])
            for name, record in records.items():
                k.store(record, (steps.index, LANE), results[f"next_{name}"])
            steps.next |= {f"s_{name}": results[f"next_{name}"] for name in names}
        return {f"s_{name}": steps.results[f"s_{name}"] for name in names}

    if not in_chunks:
        with k.lanes():
            env = w.constants()
            states: dict[str, Operand] = {
                f"s_{name}": k.load(b, (LANE,), f"start_{name}") for name, b in starts.items()
            }
            with k.loop("segment", 0, w.segments, states) as outer:
                begin, end = w.bounds(outer.index)
                if plan.recomputed:
                    w.store_checkpoint(checkpoints, outer.index, outer.carried)
                outer.next |= walk(env, outer.carried, begin, end)
            for name, buffer in ends.items():
                k.store(buffer, (LANE,), outer.results[f"s_{name}"])
        return k.kernel()
    _walk_in_chunks(w, (starts, ends, checkpoints), walk)
    return k.kernel()


def _walk_in_chunks(
    w: _Writer,
    buffers: tuple[Mapping[str, Buffer], Mapping[str, Buffer], Buffer],
    walk: Callable[
        [Mapping[str, Operand], Mapping[str, Operand], Value, Value], Mapping[str, Operand]
    ],
) -> None:
    """Write the forward pass in chunks of time, one block of lanes after the other in each.

    Args:
        w: the writer.
        buffers: initial states, final states, checkpoints.
        walk: writes the loop over some steps; returns the states behind them.
    """
    k, (starts, ends, checkpoints) = w.k, buffers
    carried = [f"s_{name}" for name in starts]
    held, parameters = w.hold(carried), w.hold_parameters()
    with k.lanes():
        w.keep(held, [k.load(b, (LANE,), "start") for b in starts.values()])
        w.keep(parameters, w.parameters().values())
    with k.loop("segment", 0, w.segments) as outer:
        begin, end = w.bounds(outer.index)
        if w.plan.recomputed:
            with k.lanes():
                w.store_checkpoint(checkpoints, outer.index, w.held(held, carried))
        with k.loop("chunk", 0, w.chunks) as chunk:
            first, last = w.chunk_bounds(chunk.index, begin, end)
            with k.lanes():
                env = w.held_constants(parameters)
                w.keep(held, walk(env, w.held(held, carried), first, last).values())
    with k.lanes():
        for buffer, value in zip(ends.values(), w.held(held, carried).values(), strict=True):
            k.store(buffer, (LANE,), value)


def backward_kernel(plan: Plan) -> Kernel:
    """Return the backward pass: gradients of inputs and initial states, sums of parameters'."""
    program, states = plan.program, plan.program.states
    w = _Writer("backward", "backward pass", plan, [plan.backward, plan.advance])
    w.sizes()
    inputs = w.each(Role.INPUT, program.inputs, Size(w.steps), LANES)
    w.declare_constants()
    k = w.k
    kept = max(1, len(plan.recomputed))
    checkpoints = k.buffer(Role.CHECKPOINTS, "", (Size(w.segments, -1), kept, LANES))
    starts = w.each(Role.START, plan.recomputed, LANES)
    g_output = k.buffer(Role.GRAD_OUTPUT, "", (Size(w.steps), LANES))
    g_ends = w.each(Role.GRAD_END, states, LANES)
    g_records = w.each(Role.GRAD_RECORD, plan.record, Size(w.steps), LANES)
    d_inputs = w.each(Role.GRAD_INPUT, plan.differentiated, Size(w.steps), LANES)
    d_starts = w.each(Role.GRAD_START, states, LANES)
    sums = k.buffer(Role.SUMS, "", (max(1, len(plan.trained)), LANES), Dtype.FLOAT64)
    past = k.buffer(Role.PAST, "", (Size(w.every), kept, LANES))
    with k.lanes():
        env = w.constants()
        cotangents: dict[str, Operand] = {
            f"g_{name}": k.load(b, (LANE,), f"g_end_{name}") for name, b in g_ends.items()
        }
        with k.loop("segment", 0, w.segments, cotangents, reverse=True) as outer:
            begin, end = w.bounds(outer.index)
            w.recompute((starts, checkpoints, past, inputs), env, outer.index, begin, end)
            zeros: dict[str, Operand] = {f"sum_{name}": 0.0 for name in plan.trained}
            with k.loop("t", begin, end, {**outer.carried, **zeros}, reverse=True) as walk:
                now = dict(walk.carried)
                # a recorded state has two uses, the next step and the trajectory
                for name, buffer in g_records.items():
                    recorded = k.load(buffer, (walk.index, LANE), f"h_{name}")
                    now[f"g_{name}"] = k.op("add", now[f"g_{name}"], recorded)
                before = w.load_past(past, walk.index, begin)
                given = w.load_inputs(inputs, plan.backward, walk.index)
                if "g_output" in plan.backward.reads():
                    now["g_output"] = k.load(g_output, (walk.index, LANE), "g_output")
                results = w.compute(plan.backward, {**env, **now, **before, **given})
                for name, buffer in d_inputs.items():
                    k.store(buffer, (walk.index, LANE), results[f"d_{name}"])
                for name in plan.trained:
                    total = k.op("add", walk.carried[f"sum_{name}"], results[f"d_p_{name}"])
                    walk.next[f"sum_{name}"] = total
                walk.next |= {f"g_{name}": results[f"d_s_{name}"] for name in states}
            w.add_sums(sums, walk.results)
            outer.next |= {f"g_{name}": walk.results[f"g_{name}"] for name in states}
        for name, buffer in d_starts.items():
            k.store(buffer, (LANE,), outer.results[f"g_{name}"])
    return k.kernel()


# One step


def step_kernel(plan: Plan) -> Kernel:
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
        env = w.constants()
        env |= {name: k.load(buffer, (LANE,), name) for name, buffer in inputs.items()}
        env |= {f"s_{name}": k.load(b, (LANE,), f"s_{name}") for name, b in starts.items()}
        results = w.compute(program.forward, env)
        k.store(output, (LANE,), results["output"])
        for name, buffer in ends.items():
            k.store(buffer, (LANE,), results[f"next_{name}"])
    return k.kernel()


# A linear recurrence


def recurrent_forward_kernel(plan: RecurrentPlan) -> Kernel:
    """Return the forward pass in a linear recurrence."""
    program, states = plan.program, plan.program.states
    w = _Writer("forward", "forward pass in a linear recurrence", plan, [program.forward])
    w.sizes()
    k = w.k
    taps = k.size("taps")
    given = k.buffer(Role.INPUT, "given", (Size(w.steps), LANES))
    w.declare_constants()
    matrix = k.buffer(Role.MATRIX, "", (Size(taps), NEURONS, NEURONS))
    bias = k.buffer(Role.BIAS, "", (NEURONS,))
    drive = k.buffer(Role.DRIVE, "", (Size(w.steps), LANES))
    first = k.buffer(Role.FIRST_OUTPUT, "", (Size(taps), LANES))
    output = k.buffer(Role.OUTPUT, "", (Size(w.steps), LANES))
    last = k.buffer(Role.LAST_OUTPUT, "", (LANES,))
    starts = w.each(Role.START, states, LANES)
    ends = w.each(Role.END, states, LANES)
    kept = max(1, len(plan.recomputed))
    checkpoints = k.buffer(Role.CHECKPOINTS, "", (Size(w.segments, -1), kept, LANES))
    carried = [f"s_{name}" for name in states]
    held, parameters = w.hold(carried), w.hold_parameters()
    with k.lanes():
        w.keep(held, [k.load(b, (LANE,), "start") for b in starts.values()])
        w.keep(parameters, w.parameters().values())
    with k.loop("past", 0, taps) as walk:
        # the oldest output reaches the first step, and no other, with the last matrix
        skipped = k.op("sub", k.op("sub", taps, 1), walk.index)
        count = k.op("min", k.op("add", walk.index, 1), w.steps)
        k.product(drive, (0, LANE), first, (walk.index, LANE), matrix, skipped, count)
    with k.loop("segment", 0, w.segments) as outer:
        begin, end = w.bounds(outer.index)
        if plan.recomputed:
            with k.lanes():
                w.store_checkpoint(checkpoints, outer.index, w.held(held, carried))
        with k.loop("t", begin, end) as walk:
            t = walk.index
            with k.lanes():
                env = w.held_constants(parameters)
                shift = k.load(bias, (NEURON,), "bias")
                fed = k.op("add", k.load(drive, (t, LANE), "fed"), shift)
                x = k.op("add", k.load(given, (t, LANE), "given"), fed)
                k.store(drive, (t, LANE), x)
                results = w.compute(program.forward, {**env, **w.held(held, carried), "x": x})
                k.store(output, (t, LANE), results["output"])
                w.keep(held, [results[f"next_{name}"] for name in states])
            left = k.op("sub", k.op("sub", w.steps, 1), t)
            following, count = k.op("add", t, 1), k.op("min", taps, left)
            k.product(drive, (following, LANE), output, (t, LANE), matrix, 0, count)
    with k.lanes():
        for buffer, value in zip(ends.values(), w.held(held, carried).values(), strict=True):
            k.store(buffer, (LANE,), value)
        final = k.op("sub", w.steps, 1)
        k.store(last, (LANE,), k.load(output, (final, LANE), "last"))
    return k.kernel()


def recurrent_backward_kernel(plan: RecurrentPlan) -> Kernel:
    """Return the backward pass in a linear recurrence; its outputs are recomputed on the way."""
    program, states = plan.program, plan.program.states
    title = "backward pass in a linear recurrence"
    w = _Writer("backward", title, plan, [plan.backward, plan.advance])
    w.sizes()
    k = w.k
    taps = k.size("taps")
    inputs = w.each(Role.INPUT, program.inputs, Size(w.steps), LANES)
    w.declare_constants()
    matrix = k.buffer(Role.MATRIX, "", (Size(taps), NEURONS, NEURONS))
    kept = max(1, len(plan.recomputed))
    checkpoints = k.buffer(Role.CHECKPOINTS, "", (Size(w.segments, -1), kept, LANES))
    starts = w.each(Role.START, plan.recomputed, LANES)
    g_output = k.buffer(Role.GRAD_OUTPUT, "", (Size(w.steps), LANES))
    g_last = k.buffer(Role.GRAD_LAST_OUTPUT, "", (LANES,))
    g_ends = w.each(Role.GRAD_END, states, LANES)
    d_x = k.buffer(Role.GRAD_INPUT, "x", (Size(w.steps), LANES))
    output = w.each(Role.OUTPUT, [""] * plan.needs_weight_gradient, Size(w.steps), LANES)
    d_first = k.buffer(Role.GRAD_FIRST_OUTPUT, "", (Size(taps), LANES))
    d_starts = w.each(Role.GRAD_START, states, LANES)
    sums = k.buffer(Role.SUMS, "", (max(1, len(plan.trained)), LANES), Dtype.FLOAT64)
    past = k.buffer(Role.PAST, "", (Size(w.every), kept, LANES))
    # cotangents of the states, then sums of parameters' gradients
    carried = [*(f"g_{name}" for name in states), *(f"sum_{name}" for name in plan.trained)]
    held, parameters = w.hold(carried), w.hold_parameters()
    trained = [(i + len(states), name) for i, name in enumerate(plan.trained)]

    with k.lanes():
        for i, buffer in enumerate(g_ends.values()):
            k.store(held, (i, LANE), k.load(buffer, (LANE,), "g_end"))
        w.keep(parameters, w.parameters().values())
        # of these no product overwrites
        open_ends = k.op("sub", w.steps, k.op("min", taps, w.steps))
        with k.loop("i", open_ends, w.steps) as walk:
            k.store(d_x, (walk.index, LANE), 0.0)
        with k.loop("i", 0, taps) as walk:
            k.store(d_first, (walk.index, LANE), 0.0)
        final = k.op("sub", w.steps, 1)
        k.store(d_x, (final, LANE), k.load(g_last, (LANE,), "g_last"))
    with k.loop("segment", 0, w.segments, reverse=True) as outer:
        begin, end = w.bounds(outer.index)
        with k.lanes():
            env = w.held_constants(parameters)
            w.recompute((starts, checkpoints, past, inputs), env, outer.index, begin, end)
            for i, _ in trained:
                k.store(held, (i, LANE), 0.0)
        with k.loop("t", begin, end, reverse=True) as walk:
            t = walk.index
            with k.lanes():
                env, now = w.held_constants(parameters), w.held(held, carried)
                given = k.load(g_output, (t, LANE), "given")
                now["g_output"] = k.op("add", k.load(d_x, (t, LANE), "fed"), given)
                before = w.load_past(past, t, begin)
                x = w.load_inputs(inputs, plan.backward, t)
                results = w.compute(plan.backward, {**env, **now, **before, **x})
                k.store(d_x, (t, LANE), results["d_x"])
                for buffer in output.values():
                    k.store(buffer, (t, LANE), results["output"])
                for i, name in enumerate(states):
                    k.store(held, (i, LANE), results[f"d_s_{name}"])
                for i, name in trained:
                    total = k.op("add", now[f"sum_{name}"], results[f"d_p_{name}"])
                    k.store(held, (i, LANE), total)
            preceding, count = k.op("sub", t, 1), k.op("min", taps, t)
            k.product(d_x, (preceding, LANE), d_x, (t, LANE), matrix, 0, count, reverse=True)
            newest, rest = k.op("sub", taps, 1), k.op("sub", taps, count)
            k.product(d_first, (newest, LANE), d_x, (t, LANE), matrix, count, rest, reverse=True)
        with k.lanes():
            totals: dict[str, Operand] = {
                f"sum_{name}": k.load(held, (i, LANE), f"sum_{name}") for i, name in trained
            }
            w.add_sums(sums, totals)
    with k.lanes():
        for i, buffer in enumerate(d_starts.values()):
            k.store(buffer, (LANE,), k.load(held, (i, LANE), "g_start"))
    return k.kernel()
