"""Differentiate one ``step`` lane by lane, and describe the products that feed lanes.

A lane is one neuron of one sample. ``step`` is pointwise, so the sum over all lanes of a next state
has the derivatives of every lane as its gradient, and one backward pass gives a row of every block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracetorch.core.hooks import front_padding, hooked_weights
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.neuron import Neuron

LinearMap: TypeAlias = nn.Linear | nn.Conv2d

_DIGIT = 16  # values of a probe: with more, the smallest would be lost beside the largest


class LaneDerivatives(NamedTuple):
    """Derivatives of the next states, each shaped like the input; ``None`` is zero everywhere."""

    # ``by_state[i][j]``, of next state ``i`` by state ``j``: the block
    by_state: list[list[Tensor | None]]
    by_input: list[Tensor | None]  # of every next state by the input
    # of every next state by the constrained parameters that learn, by name
    by_parameter: list[dict[str, Tensor | None]]


def added(terms: Iterable[Tensor | None]) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def multiplied(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a * b


class Run(NamedTuple):
    """A run of ``step`` on leaves of the lanes' shape."""

    sources: list[Tensor]  # the leaves: active states, input, learned parameters
    output: Tensor  # of the step
    ends: list[Tensor]  # the next active states

    def value(self, i: int) -> Tensor:
        """Return a next state, or the output behind the last of them."""
        return (*self.ends, self.output)[i]


class StepCall(NamedTuple):
    layer: Neuron
    x: Tensor  # the input, in the dtype of the arithmetic
    further: Sequence[Tensor]  # inputs after ``x``, constants, of its shape
    states: Mapping[str, Tensor]  # the active ones, by name
    kwargs: Mapping[str, Any]  # of ``step``

    def run(self, wrapped: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})) -> Run:
        """Run ``step`` on leaves, ``wrapped`` as in :meth:`Cell.run`."""

        def leaf(value: Tensor) -> Tensor:
            return value.detach().expand(self.x.shape).clone().requires_grad_()

        with torch.enable_grad():
            given = leaf(self.x)
            states = {name: leaf(state) for name, state in self.states.items()}
            learned = learned_parameters(self.layer, self.kwargs)
            leaves = {name: leaf(value) for name, value in learned.items()}
            inputs, kwargs = (given, *self.further), {**self.kwargs, **leaves}
            output, ends = self.layer.cell.run(inputs, states, kwargs, wrapped)
        return Run([*states.values(), given, *leaves.values()], output, [*ends.values()])

    def derivatives(
        self, detached: Collection[str] = (), *, of_output: bool = False
    ) -> LaneDerivatives:
        """Differentiate the next states, or the output; the spikes ``detached`` are constants."""
        run = self.run(dict.fromkeys(detached, detached_spikes))
        ends = [run.output] if of_output else run.ends
        return self.by_source([gradients(end, run.sources, None) for end in ends])

    def by_source(self, rows: Sequence[list[Tensor | None]]) -> LaneDerivatives:
        """Split the rows of gradients into those by states, input and parameters."""
        count = len(self.layer.active_states)
        names = list(learned_parameters(self.layer, self.kwargs))
        return LaneDerivatives(
            [row[:count] for row in rows],
            [row[count] for row in rows],
            [dict(zip(names, row[count + 1 :], strict=True)) for row in rows],
        )

    def check(self, label: str) -> None:
        """Raise where the call was more than its ``step``, or a lane depends on another lane."""
        layer, x = self.layer, self.x
        left = [getattr(layer, name) for name in layer.active_states]
        if not all(map(is_close, self.run().ends, left)):
            raise ValueError(
                f"{label} has other states than its step computes from the same input: it draws "
                "random numbers, or its forward does more. Traces are derived from step alone."
            )

        # A generator of its own: the user's random numbers are not drawn from.
        generator = torch.Generator().manual_seed(0)

        def noisy(value: Tensor, size: float) -> Tensor:
            drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            return value + size * drawn.to(x.device)

        # far from here too: what mixes may be silent where the states are small
        for size in (1.0, 10.0):
            states = {name: noisy(state, size) for name, state in self.states.items()}
            run = self._replace(x=noisy(x, size), states=states).run()
            for end in (run.output, *run.ends):
                plain = gradients(end, run.sources, None)
                for probe in probes(x):
                    pairs = zip(gradients(end, run.sources, probe), plain, strict=True)
                    found = [(a, b) for a, b in pairs if a is not None and b is not None]
                    if not all(is_close(a, probe * b) for a, b in found):
                        raise ValueError(
                            f"{label} has a step that mixes neurons or samples, and traces need "
                            "pointwise ones. Put what mixes into a module before the layer."
                        )


def learned_parameters(layer: Neuron, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the constrained parameters among the step kwargs that require a gradient."""
    constraints = layer.constraints
    return {n: v for n, v in kwargs.items() if n in constraints and v.requires_grad}


def probes(x: Tensor) -> list[Tensor]:
    """Return cotangents that a diagonal Jacobian, and no other, multiplies lane by lane."""
    # Powers of two with signs, for exact products: the digits of a lane's number in a random order,
    # so that any two lanes differ in one; and one in another order, for what cancels in these.
    generator = torch.Generator().manual_seed(0)
    numbers, others = (torch.randperm(x.numel(), generator=generator) for _ in range(2))
    digits = [others % _DIGIT, numbers % _DIGIT]
    while _DIGIT ** (len(digits) - 1) < x.numel():
        numbers = numbers // _DIGIT
        digits.append(numbers % _DIGIT)
    values = [(1 - 2 * (kinds % 2)) * 2 ** (kinds // 2) for kinds in digits]
    return [each.view(x.shape).to(x.device, x.dtype) for each in values]


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding; NaN equals NaN."""
    largest = float(b.detach().abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6 * largest, equal_nan=True)


def detached_spikes(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda u: function(u).detach()


def gradients(
    end: Tensor, sources: Sequence[Tensor], weights: Tensor | None
) -> list[Tensor | None]:
    """Gradient of the sum over all lanes; the graph is kept for the next states."""
    if not end.requires_grad:
        return [None] * len(sources)
    cotangent = torch.ones_like(end) if weights is None else weights
    return list(torch.autograd.grad(end, sources, cotangent, retain_graph=True, allow_unused=True))


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d)


def is_linear_map(module: nn.Module) -> bool:
    """Whether a module's weights can have traces."""
    # where a hook computes the weight, it is no parameter, and that of the last call
    if "forward" in vars(module) or hooked_weights(module):
        return False
    if isinstance(module, nn.Conv2d) and plain_class(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and module.padding != "same"
    return plain_class(module) is nn.Linear


def weights_of(module: LinearMap) -> list[Tensor]:
    return [module.weight] if module.bias is None else [module.weight, module.bias]


def lanes(module: LinearMap, values: Tensor) -> Tensor:
    """Reshape values shaped like the output to ``[samples and places, outputs]``."""
    channels_last = values.movedim(-3, -1) if is_convolution(module) else values
    return channels_last.reshape(-1, channels_last.shape[-1])


def padding_of(module: nn.Conv2d) -> tuple[int, ...]:
    return front_padding(module.padding, module.kernel_size, module.dilation)


def factors(module: LinearMap, x: Tensor) -> Tensor:
    """Return what the weights of an output are multiplied by, ``[samples and places, inputs]``."""
    if is_convolution(module):
        images = x if x.ndim == 4 else x[None]
        pairs = module.kernel_size, module.dilation, padding_of(module), module.stride
        patches = functional.unfold(images, *[(pair[0], pair[1]) for pair in pairs])
        return patches.transpose(1, 2).flatten(0, 1)
    return x.reshape(-1, x.shape[-1])


def features(module: LinearMap, x: Tensor) -> Tensor:
    """Return the factors of the weights, and 1 for the bias; 0 of what is frozen."""
    rows = factors(module, x)
    rows = rows if module.weight.requires_grad else torch.zeros_like(rows)
    if module.bias is None:
        return rows
    return torch.cat([rows, torch.full_like(rows[:, :1], float(module.bias.requires_grad))], 1)


def inputs_of(module: LinearMap) -> int:
    return module.weight[0].numel() + (module.bias is not None)


def split(module: LinearMap, gradient: Tensor) -> list[Tensor]:
    if module.bias is None:
        return [gradient.view_as(module.weight)]
    return [gradient[:, :-1].reshape(module.weight.shape), gradient[:, -1]]
