"""Direct coding: repeat a value at every step as a constant current."""

from __future__ import annotations

from torch import Tensor

from tracetorch.core.checks import check_count


def repeat(x: Tensor, steps: int) -> Tensor:
    """Repeat ``x`` at every step, as a view without a copy.

    The first neurons of the network turn it into spikes (direct coding). ``tt.unroll(model, x,
    steps=T)`` gives the same result and computes the layers before the first neuron only once.

    Args:
        x: any tensor.
        steps: the number of time steps.

    Shape:
        ``[...]`` to ``[T, ...]``.

    Raises:
        TypeError: ``steps`` is not an integer.
        ValueError: ``steps`` is less than 1.

    Example:
        >>> repeat(torch.tensor([0.1, 0.9]), 3)
        tensor([[0.1000, 0.9000],
                [0.1000, 0.9000],
                [0.1000, 0.9000]])
    """
    return x.expand(check_count("steps", steps), *x.shape)
