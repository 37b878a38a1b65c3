"""Fuse: a layer's ``step`` compiled into one loop over time, forward and backward.

Fusing. ``step`` is run once on tensors without values; what it and autograd do to them is recorded
as straight-line arithmetic on one lane, and scheduled as loops over time in which states stay in
registers or cache: a kernel, which is data, spelled by a printer for each machine. Backward keeps
the input and the states of every k-th step, and computes those in between again, because fresh
pages cost more than arithmetic. Forward contracts products and sums only where PyTorch does
(``alpha=``, ``lerp``, ``addcmul``), so arithmetic is bitwise that of the eager step; ``exp``,
``log``, ``tanh``, ``silu`` come from other libraries than PyTorch's, and a square root is the
nearest number, which PyTorch's own with AVX-512 is not in some releases: the last places may
differ. Numbers that a step or a surrogate holds are arguments of its kernel or part of its key: an
annealed slope can never run a stale one. What cannot be fused runs eagerly, and says why once; so
does what a kernel for a GPU computes otherwise on a sample of its first call
(``tracetorch/fuse/dispatch/trial.py``). A kernel's gradient has no derivative of its own: what
needs one runs under ``backend("eager")``.
"""

from tracetorch.fuse.dispatch.backends import NAMES, backend, requested_backend, unavailable_reason
from tracetorch.fuse.dispatch.prepared import unsupported_reason

__all__ = ["NAMES", "backend", "requested_backend", "unavailable_reason", "unsupported_reason"]
