"""``PastLayer``: a layer whose outputs are sums over this input and those of the last steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from tracetorch.core.double_backward import explain_double_backward
from tracetorch.core.torch_private import is_tracing
from tracetorch.snn.sequence_layer import SequenceLayer


class PastLayer(SequenceLayer):
    """Base of layers whose outputs are sums over this input and the last ``max_delay`` ones.

    The state ``past`` has the shape of one step and time behind it, the oldest input first. Past
    and inputs together are a window.
    """

    states: ClassVar[tuple[str, ...]] = ("past",)

    max_delay: int
    past: Tensor | None
    _time: ClassVar[int] = -1
    """The dimension of time in a window."""

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step."""
        dtype = self._check_input(x)
        y, window = self._run(x.unsqueeze(0), dtype)
        return self._finish(y.squeeze(0), window, 1, x.dtype)

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` ``[T, ...]`` as one operation over time."""
        dtype = self._check_input(x, sequence=True)
        self._check_record(record)
        y, window = self._run(x, dtype)
        output, trajectories = self._finish(y, window, len(x), x.dtype), {}
        for name in record:  # the pasts before every step, and after the last
            pasts = window.movedim(self._time, 0).unfold(0, self.max_delay, 1)
            trajectories[name] = pasts[1:].clone(memory_format=torch.contiguous_format)
        return output, trajectories

    def _run(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the outputs of the steps of ``x``, time first, and the window."""
        raise NotImplementedError

    def _finish(self, y: Tensor, window: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
        """Keep the last inputs, part of the graph, and return the output."""
        if not self.max_delay:
            return y.to(dtype)
        # a copy, for a view would keep the whole window in memory; time in it as it is read
        last = window.narrow(self._time, steps, self.max_delay)
        past = last.clone(memory_format=torch.contiguous_format).movedim(self._time, -1)
        if torch.compiler.is_compiling() or is_tracing():
            past = past.contiguous()  # as zeros are: a program has its states in one layout
        output, self.past = explain_double_backward([y, past])
        return output.to(dtype)

    def keep_inputs(self, x: Tensor) -> None:
        """Keep the last of some inputs ``[T, ...]``, at least ``max_delay`` of them."""
        past = x[len(x) - self.max_delay :].movedim(0, -1)
        self.past = past.clone(memory_format=torch.contiguous_format)
