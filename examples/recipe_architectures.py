"""Train architectures of the pages as they do, and with tt.recipe in place of those lines.

Each network learns a small part of its page's data for a few hundred steps: once by the lines of
the page, its start, rates and half-lives included, once by the recipe with half-lives at their
defaults. Nothing else differs, and no norm is added. Two of these scores chose a setting: spiking
outputs and the stream, that spiking neurons of many inputs without a norm learn more slowly.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import tracetorch as tt
from examples import common, events, language, memorise, networks, rate_digits, row_digits, vowels
from examples.demo import ConvSNN, augment
from examples.published_networks import outputs
from tracetorch import models, snn

NAME = "recipe_architectures"
RESULTS = (
    common.RESULTS / f"networks/{NAME}.jsonl"
)  # rows of other columns than those of the other tasks
Row = dict[str, Any]
Prepared = tuple[torch.optim.Optimizer, Any]


class Training(NamedTuple):
    """A network, its training by the lines of a page, and what it reaches."""

    model: nn.Module
    by_hand: Callable[[nn.Module, int], Prepared]
    batches: Sequence[Any]
    loss: Callable[..., Tensor]  # of what a batch holds
    score: Callable[[], float]
    sample: dict[str, Any]  # the arguments of tt.recipe besides model and total_steps
    # narrows delays, by the share of the training that is over
    sharpen: Callable[[nn.Module, float], None] = networks.sharpen


def one_cycle(
    model: nn.Module, total: int, *, lr: float, decay: float = 0.01, **options: Any
) -> Prepared:
    """Return AdamW and one cycle, as most pages have them."""
    groups = tt.param_groups(model, decay, lr=lr, **options)
    optimizer = torch.optim.AdamW(groups)
    rates = [group["lr"] for group in groups]
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total)


def constant(model: nn.Module, total: int, *, lr: float, **options: Any) -> Prepared:
    """Return Adam at one rate."""
    optimizer = torch.optim.Adam(tt.param_groups(model, 0.0, lr=lr, **options))
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, total)


def shuffled(data: Any, size: int, passes: int) -> list[Any]:
    """Return padded batches of some passes over a data set, each in another order."""
    orders = [torch.randperm(len(data)).split(size) for _ in range(passes)]
    return [
        tt.data.collate([data[i] for i in index.tolist()]) for order in orders for index in order
    ]


def digits(number: int) -> tuple[TensorDataset, TensorDataset]:
    """Return the first training digits, and 500 held out."""
    found = tt.data.load_digits()
    return TensorDataset(*found.train[:number]), TensorDataset(*found.held_out[:500])


def classifier(
    script: Any, data: tuple[Any, Any], size: int, passes: int, model: nn.Module, by_hand: Any
) -> Training:
    """Return the training of a network of ``examples.networks`` on padded sequences."""
    x, _, mask = tt.data.collate([data[0][i] for i in range(min(200, len(data[0])))])

    def loss(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return cross_entropy(script.logits(model, x, mask), y)

    score = partial(networks.accuracy, model, script.logits, data[1], 250)
    return Training(
        model, by_hand, shuffled(data[0], size, passes), loss, score, {"batch": x, "mask": mask}
    )


def spread_evenly(model: nn.Module, longest: int) -> None:
    """Spread half-lives from one step to the longest, evenly in logarithms, by hand."""
    for layer in model.modules():
        if isinstance(layer, (snn.LIF, tt.neurons.SEAdLIF)):
            halflives = torch.logspace(0, torch.tensor(longest).log2(), layer.num_neurons, base=2)
            layer.beta = tt.functional.halflife_to_decay(halflives)


def rows(recipe: bool, recurrent: bool) -> Training:
    """Digits by rows: two layers of LIF, connected all to all or not."""
    learnt, test = (
        TensorDataset(part.tensors[0].squeeze(1), part.tensors[1]) for part in digits(1800)
    )
    model = networks.Spiking(28, 10, recurrent=recurrent, norm=False)
    if not recipe:
        spread_evenly(model, 32)
    return classifier(
        row_digits, (learnt, test), 50, 2 if recurrent else 4, model, partial(one_cycle, lr=2e-2)
    )


def spoken_vowels(recipe: bool) -> Training:
    """Spoken vowels, padded: two layers of LIF."""
    data = tt.data.japanese_vowels()
    model = networks.Spiking(12, 9, width=64, norm=False)
    if not recipe:
        spread_evenly(model, 16)
    return classifier(vowels, data, 30, 15, model, partial(one_cycle, lr=2e-2))


def spoken_events(recipe: bool) -> Training:
    """Spoken digits as events: SEAdLIF behind delays."""
    recordings = [(events.cochlea(x), int(y)) for x, y in zip(*events.cepstra(), strict=True)]
    size = (events.CHANNELS, 1, 1)
    data = events.frames(recordings[:400], size), events.frames(recordings[2000:2400], size)
    model = networks.Spiking(40, 10, "SEAdLIF", width=64, norm=False, delays=8)
    if not recipe:
        spread_evenly(model, 32)
    x, _, mask = tt.data.collate([data[0][i] for i in range(100)])

    def by_hand(model: nn.Module, total: int) -> Prepared:
        tt.init.calibrate_(model, x, mask=mask)
        return one_cycle(model, total, lr=1e-2, relative=True)

    return classifier(vowels, data, 32, 5, model, by_hand)


def pairs(recipe: bool) -> Training:
    """Pairs of spikes some steps apart: LIF that forgets at once, behind learned delays."""
    lags = torch.tensor([-6, -2, 2, 6])

    def batch(size: int) -> tuple[Tensor, Tensor]:
        target, samples, x = torch.randint(4, (size,)), torch.arange(size), torch.zeros(48, size, 2)
        for _ in range(3):
            first = torch.randint(8, 40, (size,))
            x[first, samples, 0] = 1
            x[first + lags[target], samples, 1] = 1
        return x, target

    delays = snn.DelayedLinear(2, 24, max_delay=8, sigma=4.0)
    model = nn.Sequential(delays, snn.LIF(24, beta=0.05, learn_beta=False), nn.Linear(24, 4))

    def by_hand(model: nn.Module, total: int) -> Prepared:
        with torch.no_grad():  # one spike alone is below the threshold, two together reach it
            delays.linear.weight.copy_(0.6 + 0.1 * torch.randn(24, 2))
            nn.init.zeros_(delays.linear.bias)
        return constant(model, total, lr=0.01, neuron_lr_scale=10.0)

    def summed(x: Tensor) -> Tensor:
        y: Tensor = tt.unroll(model, x, from_rest=True).sum(0)
        return y

    def score() -> float:
        x, target = batch(1000)
        return float((summed(x).argmax(1) == target).double().mean())

    def sharpen(_: nn.Module, progress: float) -> None:
        if progress < 2 / 3:
            delays.sigma = 4.0 * 0.1 ** (1.5 * progress)
        elif delays.raw_delay.requires_grad:  # the last third is for the weights
            delays.round_()
            delays.raw_delay.requires_grad_(False)

    batches = [batch(64) for _ in range(300)]
    loss = lambda x, y: cross_entropy(summed(x), y)  # noqa: E731
    return Training(model, by_hand, batches, loss, score, {"batch": batches[0][0]}, sharpen)


def images(
    model: nn.Module,
    answer: Callable[[Tensor], Tensor],
    by_hand: Any,
    size: int,
    number: int,
    passes: int,
    sample: Callable[[Tensor], dict[str, Any]],
    change: Callable[[Tensor], Tensor] = lambda images: images,
) -> Training:
    """Return the training of a network of still digits, by what makes logits of images."""
    learnt, test = digits(number)
    orders = [torch.randperm(number).split(size) for _ in range(passes)]
    batches = [learnt[index] for order in orders for index in order]

    def score() -> float:
        parts = zip(*(tensor.split(250) for tensor in test.tensors), strict=True)
        right = sum(int((answer(images).argmax(1) == labels).sum()) for images, labels in parts)
        return right / len(test)

    loss = lambda x, y: cross_entropy(answer(change(x)), y)  # noqa: E731
    return Training(model, by_hand, batches, loss, score, sample(learnt[:100][0]))


def convolutions(recipe: bool) -> Training:
    """Build the demo: two convolutions, LIF per channel, a Readout; a digit for five steps."""
    model, moved = ConvSNN(), torch.Generator().manual_seed(0)
    return images(
        model,
        lambda x: tt.unroll(model, x, steps=5, from_rest=True).mean(0),
        lambda model, total: constant_groups(model, total, 1e-2),
        50, 800, 2,
        lambda x: {"batch": x, "steps": 5},
        lambda x: augment(x, moved),
    )  # fmt: skip


def constant_groups(model: nn.Module, total: int, lr: float) -> Prepared:
    """Return AdamW with one group, and one cycle."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total)


def rates(recipe: bool) -> Training:
    """Digits as rates: three layers of LIF, the last of which answers by its spikes."""
    model, drawn = rate_digits.network(), torch.Generator().manual_seed(0)
    answer = lambda x: 10 * rate_digits.spikes(model, x, 20, drawn).mean(0)  # noqa: E731
    return images(
        model, answer, partial(one_cycle, lr=5e-3), 50, 1000, 3,
        lambda x: {"batch": tt.encode.rate(x, 20, generator=drawn)},
    )  # fmt: skip


def residual(recipe: bool) -> Training:
    """Build an SEW-ResNet-18 of tt.models with batch norms."""
    model = models.SEWResNet(18, 10, 1, width=8)
    return images(
        model, partial(outputs, model), partial(one_cycle, lr=4e-3), 50, 1000, 3,
        lambda x: {"batch": nn.functional.pad(x, (2, 2, 2, 2))[:20], "steps": 4},
    )  # fmt: skip


def exact_spikes(recipe: bool) -> Training:
    """Frozen noise to rasters of digits: LIF that answers with spikes at their exact steps."""
    options = common.Options("examples.memorise", "", 1).parse([])
    options.patterns = 20
    noise, target = memorise.load(options)
    model: Any = memorise.network()
    if recipe:
        model[1] = snn.LIF(256)
    return Training(
        model,
        lambda model, total: constant_groups(model, total, 5e-3),
        [(noise, target)] * 400,
        lambda x, y: tt.loss.van_rossum(memorise.output_spikes(model, x), y, tau=1.0),
        lambda: memorise.f1(memorise.output_spikes(model, noise), target),
        {"batch": noise},
    )


def stream(recipe: bool) -> Training:
    """Build a language model: an embedding and BLIF, in pieces of 64 bytes; states go on."""
    text = language.manual()
    model = language.Model("BLIF")
    if recipe:
        model.first, model.second = snn.BLIF(language.WIDTH), snn.BLIF(language.WIDTH)
    pieces = [(x.long(), y.long()) for x, y in language.streams(text[:-2000], 16, 64)][:100]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        tt.detach_states(model)
        return cross_entropy(tt.unroll(model, x).flatten(0, 1), y.flatten())

    score = lambda: -language.bits(model, text[-2000:])  # noqa: E731
    return Training(
        model, partial(one_cycle, lr=5e-3), pieces, loss, score, {"batch": pieces[0][0]}
    )


class AdaptiveLIF(snn.Neuron):
    """A neuron of one's own: every spike raises its threshold for a while."""

    states = ("mem", "fatigue")

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", 0.9)
        self.decay("recovery", 0.97)
        self.threshold("base", 1.0)
        self.weight("cost", 0.3)

    @staticmethod
    def step(
        x: Any,
        mem: Any,
        fatigue: Any,
        *,
        beta: Any,
        recovery: Any,
        base: Any,
        cost: Any,
        spike: Any,
    ) -> Any:
        """Run one time step."""
        mem = beta * mem + x
        fired = spike(mem - base - fatigue)
        fatigue = recovery * fatigue + cost * fired
        return fired, mem - fired * base, fatigue


def patterns(recipe: bool, hidden: nn.Module, by_hand: Any) -> Training:
    """Draw inputs of two strengths: a hidden layer of one's own, and a Readout."""
    width = 64
    model = nn.Sequential(nn.Linear(8, width), hidden, nn.Linear(width, 2), snn.Readout(2))

    def batch(size: int) -> tuple[Tensor, Tensor]:
        x, y = torch.rand(30, size, 8), torch.arange(size) % 2
        x[:, y == 1, :4] *= 0.8
        return x, y

    def answer(x: Tensor) -> Tensor:
        y: Tensor = tt.unroll(model, x, from_rest=True).mean(0)
        return y

    def score() -> float:
        x, y = batch(1000)
        return float((answer(x).argmax(1) == y).double().mean())

    batches = [batch(16) for _ in range(40)]
    loss = lambda x, y: cross_entropy(answer(x), y)  # noqa: E731
    return Training(model, by_hand, batches, loss, score, {"batch": batches[0][0]})


def own_neuron(recipe: bool) -> Training:
    """Patterns by a neuron of one's own."""
    return patterns(recipe, AdaptiveLIF(64), partial(constant, lr=1e-2))


def connected(recipe: bool) -> Training:
    """Patterns by a tenth of the connections, each excitatory or inhibitory."""
    hidden = snn.Recurrent(snn.LIF(64), nn.Linear(64, 64, bias=False))
    signs = torch.where(torch.arange(64) < 51, 1, -1)
    snn.connect(hidden.connection, mask=snn.random_mask(64, 64, 0.1), signs=signs)

    def by_hand(model: nn.Module, total: int) -> Prepared:
        tt.init.fluctuation_(model, rate=0.15)
        return constant(model, total, lr=1e-2, relative=True)

    return patterns(recipe, hidden, by_hand)


# the page, what it trains, the score
CASES: dict[str, tuple[str, str, Callable[[bool], Training]]] = {
    "LIF by rows": ("tutorials/row_digits", "accuracy", partial(rows, recurrent=False)),
    "LIF, recurrent": ("understand/twelve_layers", "accuracy", partial(rows, recurrent=True)),
    "LIF, padded sequences": ("tutorials/vowels", "accuracy", spoken_vowels),
    "SEAdLIF behind delays": ("tutorials/events", "accuracy", spoken_events),
    "LIF behind delays": ("use/delays", "accuracy", pairs),
    "convolutions": ("start", "accuracy", convolutions),
    "spiking outputs, rates": ("tutorials/rate_digits", "accuracy", rates),
    "spiking outputs, times": ("tutorials/memorise", "F1", exact_spikes),
    "SEW-ResNet-18": ("use/models", "accuracy", residual),
    "BLIF, a stream": ("tutorials/language", "bits per byte", stream),
    "own neuron": ("use/own_neuron", "accuracy", own_neuron),
    "signed connections": ("use/connections", "accuracy", connected),
}
WAYS = ("page", "recipe")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.recipe_architectures --help``."""
    options = common.Options(f"examples.{NAME}", __doc__ or "")
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    return common.measure_missing(options, arguments, RESULTS, runs, measure, table)


def runs(options: argparse.Namespace) -> Iterator[Row]:
    """Return every case by both ways, seed by seed, so that what is cut off has all cases."""
    for seed in options.seeds:
        for name in options.cases:
            for way in WAYS:
                yield {"case": name, "way": way, "seed": seed}


def measure(options: argparse.Namespace, run: Row) -> Row:
    """Train a network; return its score and its cost."""
    name, recipe = run["case"], run["way"] == "recipe"
    torch.manual_seed(run["seed"])
    training = CASES[name][2](recipe)
    batches = training.batches[: 2 if options.quick else None]
    model, total = training.model.train(), len(batches)
    cpu = time.process_time()
    optimizer: torch.optim.Optimizer
    if recipe:
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer, schedule = tt.recipe(model, total_steps=total, **training.sample)
    else:
        optimizer, schedule = training.by_hand(model, total)
    tt.zero_states(model)
    for step, batch in enumerate(batches):
        training.sharpen(model, step / total)
        loss = training.loss(*batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0 if "stream" in name else torch.inf)
        optimizer.step()
        schedule.step()
    training.sharpen(model, 1.0)
    cpu = time.process_time() - cpu
    model.eval()
    tt.zero_states(model)
    with torch.no_grad():
        score = training.score()
    return {
        "score": score,
        "steps": total,
        "cpu_seconds": round(cpu, 2),
    }


def table(rows: Sequence[Row]) -> str:
    """Return the table: a line for each case, its score by both ways."""
    lines = [
        "| network | page | score | by hand | tt.recipe |",
        "|---|---|---|---|---|",
    ]
    for name, (page, score, _) in CASES.items():
        cells = []
        for way in WAYS:
            found = [row["score"] for row in rows if row["case"] == name and row["way"] == way]
            if score == "bits per byte":
                found = [-value for value in found]
                mean = f"{statistics.mean(found):.2f}" if found else ""
                cells.append(f"{mean} ± {statistics.stdev(found):.2f}" if found[1:] else mean)
            else:
                cells.append(common.percent(found) if found else "")
        lines.append(f"| {name} | {page} | {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
