"""Delay what reaches neurons by times that can be learned, one per neuron or one per synapse.

A delay is not arithmetic on one lane, as a ``step`` is: its memory is the last ``max_delay``
inputs. So ``Delay`` and ``DelayedLinear`` are sequence layers without a ``step``, as ``Recurrent``
is. Their one state ``past`` has the shape of a step, and time behind it; the batch is in front, as
in every state.

Past and inputs together are a window, and every output is a sum over the window; one step is a
sequence of one. ``Delay`` adds element by element in a fixed order, so that cutting a sequence
changes no bit. The delays of synapses are convolutions over time, whose sums may be taken in
another order, as those of ``nn.Linear``.

In a pass by layer ``convolve`` of the synaptic layers is replaced
(``tracetorch/events/delayed.py``). The events of a window are one list, and the rows of the kernel
that they name are added. The kernel's gradient uses the same lists. The input's gradient is one
product for each frequency of a Fourier transform. The forward pass uses none, because its rounding
would leave noise where no spike was.

Delays are clamped where they are used, with a gradient of one, so that a delay outside of the range
still learns. ``sigma`` is a number that the user's schedule assigns, with a buffer beside it for
the ``state_dict``. Evaluation does not round delays: ``round_()`` does, once and visibly. The
weights are those of an ``nn.Linear`` inside, because ``weight`` is a method of a
neuron. ``Recurrent`` has the kernel of its connection computed once for all steps, and with a
plain ``DelayedLinear`` one compiled loop (``tracetorch/fuse/dispatch/recurrence.py``).
"""

from tracetorch.snn.delay.axonal import Delay
from tracetorch.snn.delay.synaptic import DelayedLinear

__all__ = ["Delay", "DelayedLinear"]
