"""Delay what reaches neurons by times that can be learned, one per neuron or one per synapse.

Delays. A delay is no arithmetic on one lane: its memory is the last ``max_delay`` inputs. So
``snn.Delay`` and those of synapses, ``snn.DelayedLinear`` and ``snn.DelayedConv1d``, are neuron
layers without a ``step``, as ``snn.Recurrent`` is: rooms that need a membrane look for ``step``,
and leave them out. Their one state ``past`` has the shape of a step and time behind it, which
``state_kind`` says to the checks, so the batch is in front for masks, and names, copies and moves
are those of every state. A step is a sequence of one: window = past and inputs, and every output is
a sum over the window. ``Delay`` adds up element by element in one order, so cuts change no bit;
those of synapses are convolutions over time, whose sums may be taken in another order, as those of
``nn.Linear``. A pass by layer replaces their ``convolve``: the events of a window of steps are one
list, whose rows of the kernel are added (``tracetorch/events/delayed.py``), the kernel's gradient
goes back along the same lists, and the input's is one product for each frequency of a Fourier
transform, which is itself a product of matrices; rounding is that of a gradient there, while a
Fourier transform forward would leave noise where no spike was. Delays are clamped where they are
used, with a gradient of one, so that none is lost outside. ``sigma`` is a number that the user's
schedule assigns, with a buffer beside it for the ``state_dict``; evaluation changes nothing;
``round_()`` makes shifts of the delays, once and visibly. The weights are those of an ``nn.Linear``
or ``nn.Conv1d`` inside, since ``weight`` is a method of a neuron. ``snn.Recurrent`` has the kernel
of its connection computed once for all steps.
"""

from tracetorch.snn.delay.axonal import Delay
from tracetorch.snn.delay.synaptic import DelayedConv1d, DelayedLinear, SynapticDelays

__all__ = ["Delay", "DelayedConv1d", "DelayedLinear", "SynapticDelays"]
