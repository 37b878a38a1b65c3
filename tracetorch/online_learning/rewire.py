"""Replace the gradients of values in the autograd graph by others, derived from traces or lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tracetorch.online_learning.lanes import LaneDerivatives, added, multiplied

Pull: TypeAlias = Callable[[Sequence[Tensor | None]], Iterable[Tensor | None]]


def with_gradients(
    values: Sequence[Tensor], sources: Sequence[Tensor | None], pull: Pull
) -> Sequence[Tensor]:
    """Return values, cut from their graph, as functions of sources.

    ``pull`` maps gradients by the values to those by the sources; ``None`` is zero.
    """
    cut = [value.detach() for value in values]
    results: Sequence[Tensor] = _WithGradients.apply(  # type: ignore[no-untyped-call]
        pull, len(cut), *cut, *sources
    )
    return results


def with_derivatives(
    values: Sequence[Tensor],
    derivatives: LaneDerivatives,
    x: Tensor,
    states: Sequence[Tensor | None],
    parameters: Mapping[str, Tensor],
) -> Sequence[Tensor]:
    """Return values of the lanes' shape as functions with other derivatives than their graph's.

    They are functions of the input, the states before the step, and the parameters that learn.
    """
    by_state, by_input, by_parameter = derivatives
    sources = [*states, x, *parameters.values()]
    columns = [
        *zip(*by_state, strict=True),
        by_input,
        *([row[name] for row in by_parameter] for name in parameters),
    ]
    kinds = [None if source is None else (source.shape, source.dtype) for source in sources]

    def pull(by_value: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        for kind, column in zip(kinds, columns, strict=True):
            total = added(map(multiplied, by_value, column))
            if kind is None or total is None:
                yield None
            else:
                yield total.sum_to_size(kind[0]).to(kind[1])

    return with_gradients(values, sources, pull)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pull: Pull, count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.pull = pull
        ctx.set_materialize_grads(False)
        return tuple(value.clone() for value in tensors[:count] if value is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by_value: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, None, *[None] * len(by_value), *ctx.pull(by_value))
