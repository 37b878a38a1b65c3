"""``LockedDropout``: dropout with one mask over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from tracetorch.cell import StateKind
from tracetorch.core.checks import check_share
from tracetorch.snn.sequence_layer import SequenceLayer


class LockedDropout(SequenceLayer):
    """Dropout with one mask over time: what is dropped at a sample's first step stays dropped.

    ::

        output = x * mask,  mask = 0 with probability p, else 1 / (1 - p)

    ``nn.Dropout`` draws anew at every step, which a membrane averages out. The mask is a state,
    drawn at the first step in training and kept until ``zero_states()``; in evaluation it waits. In
    the ``connection`` of a :class:`Recurrent`, behind a linear layer, it is recurrent dropout.

    Args:
        num_neurons: size of the input at ``dim``.
        p: probability that a value is dropped, in [0, 1]; assigned anew it holds for the next mask.
        dim: the dimension of the neurons in the tensor of one step.

    Shape:
        Input, output and the state ``mask`` have one shape, with ``num_neurons`` at ``dim``.

    Raises:
        TypeError, ValueError: an argument is of another type or out of range; as any neuron layer.

    Example:
        >>> layer = LockedDropout(8, p=0.5)
        >>> first, second = layer(torch.ones(2, 8)), layer(torch.ones(2, 8))
        >>> torch.equal(first, second)
        True
        >>> layer.eval()(torch.ones(1, 8)).sum().item()
        8.0

    Reference: Gal and Ghahramani, A theoretically grounded application of dropout in recurrent
    neural networks, NeurIPS 2016; the name is that of Merity et al., ICLR 2018.
    """

    states: ClassVar[tuple[str, ...]] = ("mask",)
    _state_kind = StateKind(learned=False)

    p: float
    mask: Tensor | None

    def __init__(self, num_neurons: int, p: float = 0.5, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.option("p", check_share("p", p))

    def initial_state(
        self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Draw a mask."""
        return F.dropout(torch.ones(shape, dtype=dtype, device=device), check_share("p", self.p))

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step."""
        dtype = self._check_input(x)
        return self._masked(x, dtype) if self.training else x

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` ``[T, ...]`` at once."""
        dtype = self._check_input(x, sequence=True)
        self._check_record(record)
        if not self.training:
            # a copy: what the model does in place with the output must not reach the input
            return x.clone(), {}
        output = self._masked(x, dtype, sequence=True)
        mask = cast(Tensor, self.mask)
        return output, {name: mask.expand(len(x), *mask.shape).clone() for name in record}

    def _masked(self, x: Tensor, dtype: torch.dtype, *, sequence: bool = False) -> Tensor:
        """Multiply by the mask, and keep it."""
        mask = cast(Tensor, self._states_for(x, dtype, sequence=sequence)[0])
        output = (x.to(dtype) * mask).to(x.dtype)
        self.mask = mask
        return output
