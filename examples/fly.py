"""Run and train a network of the size of a fly's brain, along a list of edges, on a CPU.

Neurons and constants are those of the whole-brain model of Shiu et al., "A Drosophila computational
brain model reveals sensorimotor processing" (Nature 634, 2024), as its repository
philshiu/Drosophila_brain_model has them. The graph is drawn from a seed: its numbers of neurons,
connections and synapses are those of FlyWire's release 783, who is connected to whom is random. The
published tables are read instead where ``--tables`` says in which folder they are.

Four experiments: 21 neurons are activated, neurons that fire are silenced, gradients of all weights
are measured over time, and weights are learned so that the network tells two inputs apart.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tracetorch as tt
from examples import common
from examples.common import count, rate
from tracetorch import snn
from tracetorch.core.checks import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "fly"
RESULTS = common.RESULTS / "networks"  # rows of other columns than those of the other tasks
Row = dict[str, Any]

# Numbers of the tables of release 783; the degrees' largest is near 9,600, and 2,700,513
# connections have five synapses or more.
NEURONS, CONNECTIONS, SYNAPSES = 138_639, 15_091_983, 54_492_922
# logarithms of out-degrees, and of synapses of a connection, are normal with these deviations: so
# they reach those numbers
DEGREE_SPREAD, SYNAPSE_SPREAD, SYNAPSE_MEAN = 1.19, 1.43, 0.10
# GABA and glutamate inhibit in the model; a round number, which no table says
INHIBITORY = 0.4

DT = 0.1  # ms
# mV above rest, and ms: threshold, membrane, synapse, refractory period, delay, weight of a synapse
THRESHOLD, TAU_MEMBRANE, TAU_SYNAPSE, REFRACTORY, DELAY, SYNAPSE = 7.0, 20.0, 5.0, 2.2, 1.8, 0.275
RATE = 150.0  # Hz, of the Poisson input of an activated neuron
ACTIVATED = 21  # as many as the sugar neurons that the paper activates
WIDTH = 4.0  # mV of the surrogate; see docs/tutorials/fly.md

LEAK, FADE = math.exp(-DT / TAU_MEMBRANE), math.exp(-DT / TAU_SYNAPSE)
# what a synaptic variable of 1 adds to the membrane in a step
GAIN = TAU_SYNAPSE / (TAU_MEMBRANE - TAU_SYNAPSE) * (LEAK - FADE)
# synapses whose input makes a neuron at rest fire in the next step, with a membrane at three times
# the threshold, out of reach of the surrogate
KICK = 3 * THRESHOLD / (GAIN * SYNAPSE)


class FlyNeuron(snn.Neuron):
    """LIF with an exponential synapse and a refractory period; inputs are numbers of synapses.

    The order within a step, and the exact solution between steps, are those of Brian2: the states
    move on, neurons above the threshold fire, inputs arrive, and a spike resets what has arrived
    too. While a neuron is refractory its states rest, and what arrives is lost.
    """

    states: ClassVar[tuple[str, ...]] = ("membrane", "synapse", "wait")

    def __init__(
        self, num_neurons: int, dim: int = -1, *, width: float = WIDTH, detach_reset: bool = False
    ) -> None:
        super().__init__(num_neurons, dim)
        surrogate = tt.functional.triangular_surrogate(width)
        self.threshold("theta", THRESHOLD, rank=0, learnable=False, surrogate=surrogate)
        self.option("period", round(REFRACTORY / DT))
        self.option("detach_reset", detach_reset)

    @staticmethod
    def step(
        x: Tensor,
        membrane: Tensor,
        synapse: Tensor,
        wait: Tensor,
        *,
        theta: Tensor,
        period: int,
        detach_reset: bool,
        spike: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, ...]:
        """Run one step."""
        wait = (wait - 1).clamp(min=0.0)
        ready = (wait < 0.5).to(x.dtype)
        membrane = membrane + ready * ((LEAK - 1) * membrane + GAIN * synapse)
        synapse = synapse + ready * (FADE - 1) * synapse
        fired = ready * spike(membrane - theta)
        reset = fired.detach() if detach_reset else fired
        kept = 1 - reset
        return fired, kept * membrane, kept * (synapse + SYNAPSE * ready * x), wait + period * reset


class Graph(NamedTuple):
    """Edges of a network, and the synapses of each."""

    neurons: int
    edges: Tensor
    """Sources and targets ``[2, E]``, sorted by source."""
    synapses: Tensor
    """Of each edge, negative where they inhibit."""


def draw_graph(neurons: int = NEURONS, seed: int = 0) -> Graph:
    """Draw a graph with the statistics of the fly's; a small one has fewer edges a neuron.

    Targets are drawn in proportion to a weight that is spread as out-degrees are. No two edges
    connect the same neurons, and none a neuron with itself.
    """
    generator = torch.Generator().manual_seed(seed)
    # a hundredth more, for those that are drawn twice
    mean = min(1.007 * CONNECTIONS / NEURONS, neurons / 20)
    shape = {"mean": 0.0, "std": DEGREE_SPREAD, "generator": generator}
    degrees = torch.empty(neurons).log_normal_(**shape)  # type: ignore[arg-type]
    degrees = degrees.mul_(mean * neurons / degrees.sum()).round_().clamp_(max=neurons // 4)
    sources = torch.repeat_interleave(torch.arange(neurons), degrees.long())
    attraction = torch.empty(neurons).log_normal_(**shape).double().cumsum(0)  # type: ignore[arg-type]
    drawn = torch.rand(len(sources), generator=generator, dtype=torch.float64) * attraction[-1]
    targets = torch.searchsorted(attraction, drawn).clamp_(max=neurons - 1)
    pairs = torch.unique(sources * neurons + targets)
    sources, targets = pairs // neurons, pairs % neurons
    other = sources != targets
    edges = torch.stack([sources[other], targets[other]])
    synapses = torch.empty(edges.shape[1])
    synapses.log_normal_(SYNAPSE_MEAN, SYNAPSE_SPREAD, generator=generator).ceil_()
    inhibits = torch.rand(neurons, generator=generator) < INHIBITORY
    return Graph(neurons, edges, torch.where(inhibits[edges[0]], -synapses, synapses))


def read_tables(folder: Path) -> Graph:
    """Read ``Completeness_783.csv`` and ``Connectivity_783``, parquet or csv, of the repository."""
    import numpy as np
    import pandas as pd

    names = ["Presynaptic_Index", "Postsynaptic_Index", "Excitatory x Connectivity"]
    parquet, csv = (folder / f"Connectivity_783.{end}" for end in ("parquet", "csv"))
    complete = folder / "Completeness_783.csv"
    for path in (complete, parquet if parquet.exists() else csv):
        if not path.exists():
            raise FileNotFoundError(
                f"{path.name} is not in {folder}: it is in the repository "
                "philshiu/Drosophila_brain_model. Without --tables a graph is drawn."
            )
    if parquet.exists():
        table = pd.read_parquet(parquet, columns=names)
    else:
        table = pd.read_csv(csv, usecols=names)
    table = table.sort_values(names[:2])
    edges = torch.from_numpy(np.stack([table[name].to_numpy() for name in names[:2]])).long()
    synapses = torch.from_numpy(table[names[2]].to_numpy(np.float32))
    return Graph(len(pd.read_csv(complete, usecols=[0])), edges, synapses)


def silenced(graph: Graph, neurons: Tensor) -> Graph:
    """Return the graph in which the synapses of some neurons do nothing."""
    quiet = torch.isin(graph.edges[0], neurons)
    return graph._replace(synapses=graph.synapses.masked_fill(quiet, 0.0))


def network(graph: Graph, **options: Any) -> snn.Recurrent:
    """Build the network; its weights are numbers of synapses."""
    neurons = graph.neurons
    connection = snn.SparseLinear(
        neurons,
        neurons,
        graph.edges,
        weight=graph.synapses,
        # a Recurrent has a step of its own
        delay=round(DELAY / DT) - 1,
        bias=False,
    )
    return snn.Recurrent(FlyNeuron(neurons, **options), connection)


def weight_of(net: snn.Recurrent) -> nn.Parameter:
    """Return the weights of all edges."""
    return cast(snn.SparseLinear, net.connection).weight


def inputs_of(graph: Graph) -> tuple[Tensor, Tensor]:
    """Choose two groups of neurons to activate, among those with the most excitatory synapses."""
    total = torch.zeros(graph.neurons).index_add_(0, graph.edges[0], graph.synapses)
    ranked = total.argsort(descending=True)
    most = ranked[: min(10 * ACTIVATED, graph.neurons // 10)]
    every = max(2, len(most) // ACTIVATED)
    return most[0::every][:ACTIVATED], most[1::every][:ACTIVATED]


def stimulus(neurons: Tensor, seed: int) -> snn.PoissonInput:
    """Return the input that activates neurons.

    In the published model an event lifts the membrane past the threshold; here it comes through the
    synapse, and is as strong. Activated neurons are refractory here, and are not there.
    """
    return snn.PoissonInput(neurons, RATE * DT / 1000, value=KICK, seed=seed)


def steps_of(seconds: float) -> int:
    """Return the number of steps of some time."""
    return max(1, round(1000 * seconds / DT))


def activate(net: snn.Recurrent, neurons: Tensor, seconds: float, seed: int) -> Tensor:
    """Return the spikes ``[n, 3]``, step, sample and neuron, while some neurons are activated."""
    tt.zero_states(net)
    with torch.no_grad():
        found = net.run_events(stimulus(neurons, seed), steps_of(seconds), events=True)
    assert found.events is not None
    return found.events


def rates_of(events: Tensor, neurons: int, seconds: float) -> Tensor:
    """Return the spikes of each neuron in a second."""
    return torch.bincount(events[:, 2], minlength=neurons) / seconds


def responding(rates: Tensor, activated: Tensor) -> Tensor:
    """Return the neurons that fire and are not activated themselves, the most active first."""
    others = rates.index_fill(0, activated, 0.0)
    return others.argsort(descending=True)[: int((others > 0).sum())]


def check_responding(others: Tensor, graph: Graph) -> None:
    """Refuse what the experiments cannot be made with."""
    if len(others) < 2:
        raise ValueError(
            f"{len(others)} of {graph.neurons} neurons respond to those that are activated, and "
            "the experiments take two or more. Take more --neurons, 300 say, or more --seconds"
        )


def gradient_norm(
    net: snn.Recurrent, activated: Tensor, readout: Tensor, seconds: float, seed: int
) -> float:
    """Return the norm of the gradient of all weights, of the last 10 ms of a run.

    What is differentiated is the mean number of spikes of some neurons in them.
    """
    tt.zero_states(net)
    net.zero_grad(set_to_none=True)
    run = net.run_events(stimulus(activated, seed), steps_of(seconds), neurons=readout)
    assert run.outputs is not None
    run.outputs[-steps_of(0.01) :].sum().div(len(readout)).backward()
    grad = weight_of(net).grad
    assert grad is not None
    return float(grad.norm())


def growth(graph: Graph, options: argparse.Namespace) -> Row:
    """Time 100 ms and their gradient as edges grow, and as spikes do.

    Weights are 0, so that how many neurons fire depends on how many are driven alone.
    """
    quiet = graph._replace(synapses=torch.zeros_like(graph.synapses))
    driven = graph.neurons // 40
    found: dict[str, list[list[float]]] = {"growth_edges": [], "growth_spikes": []}
    drawn = torch.rand(graph.edges.shape[1], generator=torch.Generator().manual_seed(0))
    for share in options.shares:
        kept = drawn < share
        net = network(quiet._replace(edges=graph.edges[:, kept], synapses=quiet.synapses[kept]))
        _, *times = _timed(net, driven, options)
        found["growth_edges"].append([int(kept.sum()), *times])
    net = network(quiet)
    for share in options.shares:
        found["growth_spikes"].append(_timed(net, max(1, round(share * driven)), options))
    for name, rows in found.items():
        print(f"  {name}: " + ", ".join(f"{n:,.0f} {a:.3f} + {b:.3f} s" for n, a, b in rows))
    return dict(found)


def _timed(net: snn.Recurrent, driven: int, options: argparse.Namespace) -> list[float]:
    """Return spikes, and the least seconds of CPU of a run and of its gradient."""
    source = snn.PoissonInput(torch.arange(driven), 0.1, value=KICK)
    times, total = [], 0.0
    for _ in range(options.repeats + 1):
        tt.zero_states(net)
        net.zero_grad(set_to_none=True)
        start = time.process_time()
        steps = steps_of(max(options.lengths))
        spikes = net.run_events(source, steps, count_every=steps).counts
        assert spikes is not None
        middle = time.process_time()
        spikes.mean().backward()
        times.append((middle - start, time.process_time() - middle))
        total = float(spikes.detach().sum())
    # the first one compiles
    return [total, *(min(each) for each in zip(*times[1:], strict=True))]


# Learning


def counts(net: snn.Recurrent, activated: Tensor, seed: int, seconds: float, cut: float) -> Tensor:
    """Return the spikes of each neuron; no gradient goes back over a cut, seconds apart."""
    tt.zero_states(net)
    steps, every = steps_of(seconds), steps_of(cut)
    parts = []
    for part, begin in enumerate(range(0, steps, every)):
        if part:
            tt.detach_states(net)
        # a run that goes on has other numbers
        source = stimulus(activated, 1000 * seed + part)
        run = net.run_events(source, min(every, steps - begin), count_every=every)
        assert run.counts is not None
        parts.append(run.counts[0, 0])
    return torch.stack(parts).sum(0)


def logits_of(spikes: Tensor, readouts: Sequence[Tensor]) -> Tensor:
    """Return a number for each input: the mean spikes of the neurons that are to answer it."""
    return 4 * torch.stack([spikes[neurons].mean() for neurons in readouts])


class Learning(NamedTuple):
    """Results of a training."""

    weights: int
    losses: list[float]
    norms: list[float]
    """Of the gradient, before it is clipped."""
    before: float
    after: float
    """Shares of right answers to new inputs."""


def learn(
    net: snn.Recurrent,
    inputs: Sequence[Tensor],
    readouts: Sequence[Tensor],
    places: Tensor,
    options: argparse.Namespace,
    seed: int,
) -> Learning:
    """Learn the weights at some places, so that each input is answered by its own neurons.

    A weight is multiplied by the exponential of what is learned, so that none changes its sign. The
    network keeps one tensor of all weights, and its gradient at the places is what is used.
    """
    weight = weight_of(net)
    start = weight.detach()[places].clone()
    change = torch.zeros(len(places), requires_grad=True)
    optimizer = torch.optim.Adam([change], options.lr)
    span = options.learn_seconds, options.cut

    def answers() -> float:
        right = 0
        with torch.no_grad():
            for trial in range(options.trials):
                for label, neurons in enumerate(inputs):
                    # seeds that training has not seen
                    spikes = counts(net, neurons, 10_000 + trial, *span)
                    logits = logits_of(spikes, readouts)
                    # no answer is no right one
                    right += bool(logits[label] > logits[1 - label])
        return right / float(2 * options.trials)

    before = answers()
    losses: list[float] = []
    norms: list[float] = []
    for step in range(options.epochs):
        weight.grad = None
        total = 0.0
        for label, neurons in enumerate(inputs):
            spikes = counts(net, neurons, 1 + seed * options.epochs + step, *span)
            loss = cross_entropy(logits_of(spikes, readouts), torch.tensor(label))
            loss.backward()
            total += loss.item() / 2
        assert weight.grad is not None
        change.grad = weight.grad[places] * weight.detach()[places]
        norms.append(float(torch.nn.utils.clip_grad_norm_([change], options.clip)))
        losses.append(total)
        optimizer.step()
        with torch.no_grad():
            weight[places] = start * change.exp()
    return Learning(len(places), losses, norms, before, answers())


def most_used(graph: Graph, rates: Tensor, number: int) -> Tensor:
    """Return the places of edges of the neurons that fire most, so many of them."""
    used = rates[graph.edges[0]]
    return used.topk(min(number, int((used > 0).sum()))).indices.sort().values


# The command line


def parser() -> common.Options:
    """Return the parser of the command line."""
    options = common.Options(
        f"examples.{TASK}", __doc__ or "", epochs=15, lr=0.1, unit="optimizer steps"
    )
    add = options.add_argument
    add("--neurons", type=count, default=NEURONS, metavar="N", help="of the graph (%(default)s)")
    add("--seconds", type=rate, default=1.0, metavar="S", help="of a simulation (%(default)s)")
    add("--tables", type=Path, metavar="FOLDER", help="where the published tables are")
    add("--learnt", type=count, default=100_000, metavar="N", help="weights (%(default)s)")
    add("--clip", type=rate, default=1.0, metavar="X", help="largest gradient (%(default)s)")
    add("--cut", type=rate, default=0.025, metavar="S", help="seconds of a gradient (%(default)s)")
    add("--trials", type=count, default=10, metavar="N", help="that measure what is learned")
    options.add_table()
    options.set_defaults(learn_seconds=0.05, lengths=(0.01, 0.02, 0.04, 0.06, 0.08, 0.1))
    options.set_defaults(shares=(0.25, 0.5, 0.75, 1.0), repeats=2)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.fly --help``."""
    options = parser().parse(arguments)
    if options.table:
        print(table(read(RESULTS)))
        return 0
    if options.quick:
        options.neurons, options.seconds, options.trials = min(options.neurons, 1000), 0.05, 1
        options.lengths, options.shares, options.repeats = (0.01, 0.02), (0.5, 1.0), 1
    torch.set_num_threads(options.threads)
    try:
        require("matplotlib", extra="examples", by=f"examples.{TASK}")
        for seed in options.seeds:
            row, figure = experiments(options, seed)
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{TASK}-{row['neurons']}-seed{seed}.png"
            figure.savefig(path)
            write(row, RESULTS if options.record else options.out)
            print(path, flush=True)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def experiments(options: argparse.Namespace, seed: int) -> tuple[Row, Figure]:
    """Run all experiments on one graph; return what they measured, and a picture."""
    load = os.getloadavg()[0]
    start = time.perf_counter()
    graph = read_tables(options.tables) if options.tables else draw_graph(options.neurons, seed)
    made = time.perf_counter() - start
    edges = graph.edges.shape[1]
    start = time.perf_counter()
    net = network(graph)
    net.connection.plan  # noqa: B018 (made at the first call)
    built = time.perf_counter() - start
    print(f"{graph.neurons:,} neurons, {edges:,} connections: built in {built:.1f} s")
    inputs = inputs_of(graph)
    activate(net, inputs[0], 0.002, seed)  # compiles
    start, cpu = time.perf_counter(), time.process_time()
    events = activate(net, inputs[0], options.seconds, seed)
    ran, cpu = time.perf_counter() - start, time.process_time() - cpu
    rates = rates_of(events, graph.neurons, options.seconds)
    others = responding(rates, inputs[0])
    check_responding(others, graph)
    print(
        f"{len(events) / options.seconds:,.0f} spikes a second, {len(others):,} neurons respond; "
        f"{options.seconds:g} s took {ran:.2f} s, the process {peak() / 1e9:.2f} GB at its peak"
    )
    row: Row = {
        "neurons": graph.neurons,
        "connections": edges,
        "tables": bool(options.tables),
        "seed": seed,
        "seconds": options.seconds,
        "graph_seconds": made,
        "build_seconds": built,
        "run_seconds": ran,
        "run_cpu_seconds": cpu,
        "run_peak_bytes": peak(),
        "spikes": len(events),
        "responding": len(others),
    }
    row |= silencing(graph, inputs[0], others, options, seed)
    row |= gradients(graph, net, inputs[0], others, options, seed)
    row |= growth(graph, options)
    row |= learning(graph, net, inputs, options, seed)
    row |= {
        # before, as the run adds to it
        "load": load,
        "threads": options.threads,
        "date": f"{date.today()}",
        "command": options.command,
        "torch": torch.__version__,
        "tracetorch": tt.__version__,
    }
    return row, draw(events, rates, row)


def silencing(
    graph: Graph, activated: Tensor, others: Tensor, options: argparse.Namespace, seed: int
) -> Row:
    """Silence the ten neurons that respond most; return how many respond then."""
    net = network(silenced(graph, others[:10]))
    events = activate(net, activated, options.seconds, seed)
    left = responding(rates_of(events, graph.neurons, options.seconds), activated)
    print(f"without the synapses of the 10 most active of them {len(left):,} neurons respond")
    return {"responding_silenced": len(left)}


def gradients(
    graph: Graph,
    net: snn.Recurrent,
    activated: Tensor,
    others: Tensor,
    options: argparse.Namespace,
    seed: int,
) -> Row:
    """Measure the gradient of all weights: its time over 100 ms, and its norm as time grows."""
    readout = others[:100]
    start, cpu = time.perf_counter(), time.process_time()
    longest = max(options.lengths)
    gradient_norm(net, activated, readout, longest, seed)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    # before float64 takes more
    most = peak()
    length, gigabytes = f"{1000 * longest:g} ms", most / 1e9
    print(
        f"the gradient of all weights over {length}: {took:.2f} s, {gigabytes:.2f} GB at the peak"
    )
    norms = {}
    for name, setting in SETTINGS.items():
        # norms leave the range of float32
        other = network(graph, **setting).double()
        norms[name] = [
            gradient_norm(other, activated, readout, length, seed) for length in options.lengths
        ]
        print(f"  norms, {name}: {' '.join(f'{norm:.1e}' for norm in norms[name])}")
    return {
        "gradient_seconds": took,
        "gradient_cpu_seconds": cpu,
        "gradient_peak_bytes": most,
        "lengths": options.lengths,
        # JSON has no infinity
        "norms": {name: [f"{norm:.4g}" for norm in each] for name, each in norms.items()},
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "surrogate of 4 mV": {},
    "surrogate of 1 mV": {"width": 1.0},
    "no gradient through resets": {"detach_reset": True},
}


def learning(
    graph: Graph,
    net: snn.Recurrent,
    inputs: Sequence[Tensor],
    options: argparse.Namespace,
    seed: int,
) -> Row:
    """Learn to tell the two inputs apart."""
    rates = torch.zeros(graph.neurons)
    for neurons in inputs:
        rates += rates_of(activate(net, neurons, 0.1, seed), graph.neurons, 0.1)
    others = responding(rates, torch.cat(list(inputs)))
    check_responding(others, graph)
    generator = torch.Generator().manual_seed(seed)
    chosen = others[:200][torch.randperm(len(others[:200]), generator=generator)][:40]
    places = most_used(graph, rates, options.learnt)
    start = time.perf_counter()
    found = learn(net, inputs, chosen.chunk(2), places, options, seed)
    took = time.perf_counter() - start
    print(
        f"{found.weights:,} weights learned in {took:.1f} s: loss {found.losses[0]:.3f} to "
        f"{found.losses[-1]:.3f}, right answers {found.before:.0%} to {found.after:.0%}, gradients "
        f"of {min(found.norms):.1e} to {max(found.norms):.1e}"
    )
    return {
        "learnt_weights": found.weights,
        "learn_seconds": took,
        "losses": [round(loss, 5) for loss in found.losses],
        "learn_norms": [f"{norm:.4g}" for norm in found.norms],
        "accuracy_before": found.before,
        "accuracy_after": found.after,
    }


def peak() -> int:
    """Return the most memory that the process has had, in bytes."""
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, other systems kibibytes
    return most if sys.platform == "darwin" else most * 1024


def draw(events: Tensor, rates: Tensor, row: Row) -> Figure:
    """Plot the spikes, the rates, the norms of gradients and the loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    (raster, rated), (grown, learned) = figure.subplots(2, 2)
    active = rates.nonzero()[:, 0]
    place = torch.full((len(rates),), -1).index_put((active,), torch.arange(len(active)))
    raster.plot(events[:, 0] * DT, place[events[:, 2]], ",k")
    raster.set(xlabel="ms", ylabel="neuron that fires", title="spikes")
    rated.plot(rates[active].sort(descending=True).values)
    rated.set(xlabel="neuron", ylabel="Hz", title="rates", yscale="log")
    for name, norms in row["norms"].items():
        grown.semilogy(
            [1000 * x for x in row["lengths"]], [float(x) for x in norms], "o-", label=name
        )
    grown.set(xlabel="ms", title="norm of the gradient")
    grown.legend()
    learned.plot(row["losses"])
    learned.set(xlabel="optimizer step", title="loss")
    return figure


def write(row: Row, folder: Path) -> None:
    """Add a row to those of a folder, in place of one of as many neurons and the same seed."""
    common.add_line(folder / f"{TASK}.jsonl", row, ("neurons", "seed", "tables"))


def read(folder: Path) -> list[Row]:
    """Return the rows of a folder."""
    return common.read_lines(folder / f"{TASK}.jsonl")


def table(rows: Sequence[Row]) -> str:
    """Return the recorded times and memories, a line for each row."""
    lines = [
        "| connections | build | run | CPU | peak | spikes | gradient of all | CPU | peak | load |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['connections']:,} | {row['build_seconds']:.1f} s "
            f"| {row['seconds']:g} s in {row['run_seconds']:.1f} s "
            f"| {row['run_cpu_seconds']:.1f} s "
            f"| {row['run_peak_bytes'] / 1e9:.2f} GB | {row['spikes']:,} "
            f"| {max(row['lengths']):g} s in {row['gradient_seconds']:.1f} s "
            f"| {row['gradient_cpu_seconds']:.1f} s "
            f"| {row['gradient_peak_bytes'] / 1e9:.2f} GB | {row['load']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
