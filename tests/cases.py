"""Shared cases: layers, configurations of a LeakyIntegrator, inputs, and the step reference."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from tracetorch import functional, neurons, snn
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.trace import Program


def few(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """Return cases as parameters of a test, slow ones but for some."""
    return [
        pytest.param(case, marks=() if case in fast else pytest.mark.slow, id=str(case))
        for case in cases
    ]


def thinned(every: int, **factors: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test over a product, slow but for one case in ``every``.

    Each two values meet in a fast case where a third factor has that many values.
    """
    numbered = [list(enumerate(values)) for values in factors.values()]
    rows = []
    for places in itertools.product(*numbered):
        marks: Any = pytest.mark.slow if sum(number for number, _ in places) % every else ()
        values = [value for _, value in places]
        rows.append(pytest.param(*values, marks=marks, id="-".join(map(str, values))))
    return pytest.mark.parametrize(tuple(factors), rows)


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


class Net(nn.Module):
    """Parts by name, and the function of them that its forward is."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.function(self, *inputs, **named)


def trace_layer(layer: snn.Neuron, ndim: int, dtype: torch.dtype) -> Program:
    """Trace the step of a layer."""
    return program_of(layer.cell, ndim, dtype, layer.step_kwargs(ndim, dtype))


def module(forward: Callable[..., Any], name: str = "Model", **parts: Any) -> Any:
    """Make a module with parts, whose forward is a function of it and of its inputs."""
    made: Any = type(name, (snn.TTModule,), {"forward": forward})()
    for key, part in parts.items():
        setattr(made, key, part)
    return made


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
