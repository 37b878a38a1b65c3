"""Shared cases: layers, configurations of a LeakyIntegrator, inputs, and the step reference."""

import copy
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from tests import networks
from tests.networks import Net as Net
from tests.networks import module as module
from tracetorch import chips, convert, functional, integers, models, neurons, online, quantize, snn
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.trace import Program


def few(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """Return cases as parameters of a test, slow ones but for some."""
    return [
        pytest.param(case, marks=() if case in fast else pytest.mark.slow, id=str(case))
        for case in cases
    ]


SPIKING = ("LIF", "BLIF", "SLIF", "RLIF", "BSLIF", "BRLIF", "SRLIF", "BSRLIF")
READOUTS = ("Readout", "SReadout", "RReadout", "SRReadout")
LAYERS = SPIKING + READOUTS
# For tests whose cost is a compilation for each layer: the fast ones take three.
FEW_LAYERS = few(LAYERS, "LIF", "BSRLIF", "SRReadout")

# The neurons of the room of that name, each with the scale of an input that makes it fire.
NEURONS = {
    "ALIF": 1.0,
    "AdLIF": 10.0,
    "SEAdLIF": 10.0,
    "RefractoryLIF": 1.0,
    "AlphaLIF": 1.5,
    "EIF": 40.0,
    "QIF": 60.0,
    "AdEx": 60.0,
    "Izhikevich": 20.0,
    "RF": 1.0,
    "BRF": 60.0,
    "TCLIF": 1.0,
    "MultiLevelLIF": 1.0,
    "SigmaDelta": 1.0,
    "GLIF": 1.0,
}
# Their steps call functions that kernels take from another library than PyTorch.
INEXACT = ("EIF", "AdEx", "RF", "BRF")

SURROGATES = (
    functional.atan_surrogate(2.0),
    functional.sigmoid_surrogate(25.0),
    functional.fast_sigmoid_surrogate(25.0),
    functional.triangular_surrogate(1.0),
    functional.boxcar_surrogate(1.0),
    functional.gaussian_surrogate(0.5),
    functional.straight_through_surrogate(),
)

# Neuron dimension, and the shape of one step that has 3 neurons there.
PLACES = ((-1, (2, 3)), (1, (2, 3, 2)), (-3, (2, 3, 2, 1)))


def examples(number: int, **options: Any) -> settings:
    """Draw so many examples of a hypothesis where the slow tests run too, else a third of them."""
    share = settings.default.max_examples / 100
    return settings(max_examples=max(5, round(number * share)), **options)


def layer(name: str, num_neurons: int = 4, **arguments: Any) -> Any:
    """Build a layer by name, with random parameters so that neurons differ and recurrence acts."""
    made: snn.Neuron = getattr(neurons if name in NEURONS else snn, name)(num_neurons, **arguments)
    vary(made, relative=name in NEURONS)
    return made


def trace_layer(layer: snn.Neuron, ndim: int, dtype: torch.dtype) -> Program:
    """Trace the step of a layer."""
    return program_of(layer.cell, ndim, dtype, layer.step_kwargs(ndim, dtype))


def through_save(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=isinstance(thing, dict))


class Slope(nn.Module):
    """A spike function whose slope is learned."""

    def __init__(self, curve: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.k, self.curve = nn.Parameter(torch.tensor(2.0)), curve

    def forward(self, u: Tensor) -> Tensor:
        return self.curve(self.k * u)


def vary(module: nn.Module, seed: int = 0, relative: bool = False) -> None:
    """Add seeded noise to every raw parameter; ``relative`` to its size, for any unit."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, raw in itertools.chain(module.named_parameters(), module.named_buffers()):
            if name.rpartition(".")[2].startswith("raw_"):
                noise = torch.randn(raw.shape, generator=generator).to(raw)
                raw.add_(0.03 * noise * raw if relative else 0.3 * noise)


def sequence(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw an input ``[T, ...]`` that makes neurons of threshold 1 spike with both signs."""
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.2).to(dtype)


def stepped(module: nn.Module, x: Tensor) -> Tensor:
    """Call the module once per step: the reference over time."""
    return torch.stack([module(step) for step in x.unbind()])


def weighted_sum(y: Tensor) -> Tensor:
    """Return a loss whose derivative differs from value to value, so that none takes another's."""
    return (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum()


def configurations(synapse: bool, recurrence: bool) -> Iterator[dict[str, Any]]:
    """Yield every distinct combination of the other parts of a LeakyIntegrator."""
    emas = ("alpha",) * synapse + ("beta",) + ("gamma",) * recurrence
    for positive, negative, bias, scales, rank in itertools.product((False, True), repeat=5):
        if scales and not (positive or negative):
            continue
        resets = ("subtract", "zero", "none") if positive or negative else ("subtract",)
        for reset, averaging in itertools.product(
            resets, itertools.product((False, True), repeat=len(emas))
        ):
            common = {"rank": int(rank)}
            setups: dict[str, Any] = {
                f"{name}_setup": {**common, "use_averaging": on}
                for name, on in zip(emas, averaging, strict=True)
            }
            if recurrence:
                setups["rec_weight_setup"] = common
            if positive:
                setups["pos_threshold_setup"] = common
            if negative:
                setups["neg_threshold_setup"] = common
            if bias:
                setups["bias_setup"] = common
            if scales and positive:
                setups["pos_scale_setup"] = common
            if scales and negative:
                setups["neg_scale_setup"] = common
            yield {**setups, "reset": reset}


N = 4
_ALL_PARTS: Any = {
    f"{part}_setup": {}
    for part in (
        *("alpha", "beta", "gamma", "pos_threshold", "neg_threshold", "pos_scale", "neg_scale"),
        *("rec_weight", "bias"),
    )
}
_EDGES = torch.tensor([[0, 2, 1, 2, 3], [1, 0, 2, 0, 3]])
_MASK = torch.rand(N, N, generator=torch.Generator().manual_seed(0)) < 0.7

# Every layer that a network of spikes is built of, as float tensors of N neurons go through it.
LAYER_MAKERS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(getattr(snn, name), N) for name in LAYERS},
    **{name: partial(getattr(neurons, name), N) for name in NEURONS},
    "LeakyIntegrator": lambda: snn.LeakyIntegrator(N, pos_threshold_setup={}, bias_setup={}),
    "LeakyIntegrator, all parts": lambda: snn.LeakyIntegrator(N, **_ALL_PARTS),
    "LIF, a learned tensor": lambda: snn.LIF(N, beta=torch.linspace(0.1, 0.9, N)),
    "LIF, a tensor of one value": lambda: snn.LIF(N, beta=torch.tensor(0.7)),
    "LIF, fixed": lambda: snn.LIF(N, learn_beta=False, beta_rank=0),
    "LIF, reset to zero": lambda: snn.LIF(N, reset="zero", detach_reset=True),
    "AdLIF, bounded": lambda: neurons.AdLIF(N, rho=0.99, bounded=True),
    "EIF, substeps": lambda: neurons.EIF(N, substeps=3),
    "Recurrent": lambda: snn.Recurrent(snn.LIF(N), nn.Linear(N, N)),
    "Recurrent, no bias": lambda: snn.Recurrent(snn.SLIF(N), nn.Linear(N, N, bias=False)),
    "Recurrent, delayed": lambda: snn.Recurrent(snn.LIF(N), snn.DelayedLinear(N, N, max_delay=3)),
    "BatchNormThroughTime": partial(snn.BatchNormThroughTime, N, steps=3),
    "BatchNormThroughTime, bias": partial(snn.BatchNormThroughTime, N, steps=3, bias=True),
    "Delay": partial(snn.Delay, N, max_delay=3),
    "Delay, a number": partial(snn.Delay, N, max_delay=3, delay=2.0),
    "Delay, a tensor": lambda: snn.Delay(N, max_delay=3, delay=torch.arange(N).float()),
    "Delay, wide": partial(snn.Delay, N, max_delay=3, sigma=0.5),
    "DelayedLinear": partial(snn.DelayedLinear, N, N, max_delay=3),
    "SparseLinear": lambda: snn.SparseLinear(N, N, _EDGES, signs=_EDGES.new_ones(N)),
    "SparseLinear, delayed": lambda: snn.SparseLinear(
        N, N, _EDGES, delay=_EDGES[1], group=_EDGES[0]
    ),
    "SparseLinear, made there": lambda: snn.SparseLinear(N, N, torch.ones(2, 3).long(), delay=2),
    "Populations": lambda: snn.Populations(e=snn.LIF(2), i=snn.SLIF(N - 2)),
    "LockedDropout": partial(snn.LockedDropout, N),
    "Noise": partial(snn.Noise, N, seed=3),
    "Noise, uniform": partial(snn.Noise, N, seed=2**40, distribution="uniform"),
    "SEWBlock": lambda: snn.SEWBlock(nn.Sequential(nn.Linear(N, N), snn.LIF(N))),
    "models.IF": lambda: models.IF(N),
    "convert.IntegrateAndFire": lambda: convert.IntegrateAndFire(N, burst=2),
    "a network": lambda: nn.Sequential(nn.Linear(N, N), snn.LIF(N), nn.Linear(N, N)),
}
# Networks of a kind each.
NETWORK_MAKERS: dict[str, Callable[[], nn.Module]] = {
    "Recurrent, connected": lambda: snn.Recurrent(
        snn.LIF(N), snn.connect(nn.Linear(N, N), mask=_MASK)
    ),
    "Recurrent, populations": lambda: snn.Recurrent(
        snn.Populations(e=snn.LIF(2), i=snn.SLIF(N - 2)), nn.Linear(N, N), shape=N
    ),
    "Recurrent, a memory": lambda: snn.Recurrent(
        nn.Sequential(networks.Counts(N), snn.LIF(N)), nn.Linear(N, N), shape=N
    ),
    "SparseLinear, edges that are drawn": lambda: snn.SparseLinear(
        *(N, N, torch.randint(0, N, (2, 6))),
        delay=torch.randint(0, 3, (6,)).index_fill(0, torch.tensor([0]), 2),
        signs=torch.ones(N, dtype=torch.long),
    ),
    "a neuron of one's own": lambda: networks.Leaky(N),
    "a memory of one's own": lambda: networks.Counts(N),
    "layers in a list": lambda: networks.Listed(nn.Linear(N, N), snn.RLIF(N), snn.Readout(N)),
    "a layer called twice": lambda: networks.Twice(snn.RLIF(N)),
    "a residual": lambda: networks.Residual(nn.Sequential(nn.Linear(N, N), snn.SLIF(N))),
}
# Those whose outputs are drawn anew in each call.
RANDOM_LAYERS = {"LockedDropout", "Noise", "Noise, uniform"}


def _integers(*shape: int) -> Tensor:
    return torch.randint(-60, 90, shape, generator=torch.Generator().manual_seed(1)).float()


@cache
def _quantised(seed: int) -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Linear(N, 3), snn.RLIF(3), nn.Linear(3, 2), snn.Readout(2))
    prepared = quantize.prepare(model, torch.rand(6, 2, N))
    return prepared, quantize.convert(prepared)[0]


def _images(build: Callable[..., nn.Module], *sizes: Any, **options: Any) -> Callable[[], Any]:
    return lambda: build(*sizes, num_classes=3, in_channels=1, images="small", **options).eval()


_IMAGE = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))

# The other public modules, each with what goes into it in one step.
MODULE_MAKERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "xylo.LIF": (lambda: chips.xylo.LIF(N), 20 * _integers(2, N)),
    "xylo.StepDelay": (lambda: chips.xylo.StepDelay(N), _integers(2, N)),
    "convert.QuantizedReLU": (lambda: convert.QuantizedReLU(4, 1.0), torch.randn(2, N)),
    "integers.Add": (
        lambda: integers.Add(integers.Linear(N, 3), integers.Linear(N, 3), (1, 2)),
        _integers(2, N),
    ),
    "integers.Conv1d": (lambda: integers.Conv1d(2, 3, 3, shift=1), _integers(2, 2, 7)),
    "integers.Conv2d": (lambda: integers.Conv2d(2, 4, 3, groups=2), _integers(2, 2, 5, 6)),
    "integers.DelayedLinear": (
        lambda: integers.DelayedLinear(N, 3, max_delay=3, delay=torch.arange(12.0).view(3, 4) % 4),
        _integers(2, N),
    ),
    "integers.LeakyIntegrator": (
        lambda: integers.LeakyIntegrator(N, alpha=128, gamma=99, pos_threshold=90, rec_weight=2),
        _integers(2, N),
    ),
    "integers.Linear": (lambda: integers.Linear(N, 3, weight_bits=10, shift=2), _integers(2, N)),
    "integers.Quantize": (lambda: integers.Quantize(0.03, 8), torch.randn(2, N)),
    "integers.SumPool1d": (lambda: integers.SumPool1d(2), _integers(2, 2, 6)),
    "integers.SumPool2d": (lambda: integers.SumPool2d(2), _integers(2, 2, 6, 6)),
    "quantize.Prepared": (
        lambda: copy.deepcopy(_quantised(torch.initial_seed())[0]),
        torch.rand(2, N),
    ),
    "quantize.Prepared, converted": (
        lambda: copy.deepcopy(_quantised(torch.initial_seed())[1]),
        torch.rand(2, N),
    ),
    "online.OnlineLearner": (
        lambda: online(nn.Sequential(nn.Linear(N, 3), snn.RLIF(3)), "eprop"),
        3 * torch.rand(2, N),
    ),
    "models.MSResNet": (_images(models.MSResNet, 18, width=2), _IMAGE),
    "models.SEWResNet": (_images(models.SEWResNet, 18, width=2), _IMAGE),
    "models.SpikingVGG": (_images(models.SpikingVGG, 11, width=2), _IMAGE.repeat(1, 1, 4, 4)),
    "models.Spikformer": (_images(models.Spikformer, 1, 16, 2), _IMAGE),
    "models.QKFormer": (_images(models.QKFormer, (1, 1, 1), 32, 2), _IMAGE),
    "models.SpikeDrivenTransformer": (_images(models.SpikeDrivenTransformer, 1, 16), _IMAGE),
}
PUBLISHED = tuple(name for name in MODULE_MAKERS if name.startswith("models."))
MAKERS = (*LAYER_MAKERS, *NETWORK_MAKERS, *MODULE_MAKERS)


def module_and_step(name: str, seed: int = 0) -> tuple[Any, Tensor]:
    """Make a module of the lists, with parameters of a seed, and one step of what goes into it."""
    torch.manual_seed(seed)
    if name not in MODULE_MAKERS:
        made = {**LAYER_MAKERS, **NETWORK_MAKERS}[name]()
        step = sequence(2, N, dtype=torch.float32)
        vary(made, seed, relative=name in NEURONS)
        return made, step * NEURONS.get(name.partition(",")[0], 1.0)
    made, step = MODULE_MAKERS[name][0](), MODULE_MAKERS[name][1]
    for key, value in made.state_dict().items():
        if name.startswith("integers") and key.endswith("weight"):
            value.copy_(torch.randint(-99, 100, value.shape))
    return made, step
