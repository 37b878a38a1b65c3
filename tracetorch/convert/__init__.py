"""Convert a trained network: fold batch norms, or make ReLUs integrate-and-fire neurons.

A ReLU becomes neurons whose rates stand for its values. The input is the same at every step; a
neuron adds up what it receives, starts at half a threshold, and each spike takes a threshold off.
Its spike has the size of the threshold, so that weights stay as they are, and thresholds may differ
from channel to channel: what is added, pooled or multiplied is values, not counts of spikes.

What is proven, of each neuron. ``theta`` is its threshold, ``N(t)`` the number of its spikes after
``t`` steps, ``z`` the value before the ReLU and ``c`` its clip, the largest rate. Let what a neuron
has received after ``t`` steps be within ``d`` of ``t z``, for every ``t``. Then ``theta N(t)`` is
within ``theta / 2 + d`` of ``t clip(z, 0, c)``, for every ``t``: at its last spike the neuron had
that charge, and since the last step at which it did not fire all it could, it has fired at the rate
``c``. Through weights ``W`` the bound becomes ``|W| (theta / 2 + d)``, which is ``d`` of the next
layer. Nothing is assumed of the times of spikes or the signs of weights. Over ``T`` steps, a rate
is within ``D / T`` of the clipped network's, ``D`` from this recursion. The clipped network is
within ``E`` of the model: ``E = |W| E_before + e``, where ``e`` is what clip and rounding change,
since a clipped ReLU moves by no more than its input. Rates and clipped values lie between 0 and
``c``, the model's between 0 and ``m``, its own clip or the largest on the batch, in the channel if
that has a threshold of its own, not below ``c``: so neither ``E`` nor the sum of both is ever more
than ``m``.
"""

from tracetorch.convert.activations import IntegrateAndFire, QuantizedReLU
from tracetorch.convert.fold_norms import fold_norms
from tracetorch.convert.from_ann import Converted, LayerReport, Report, from_ann

__all__ = [
    "Converted", "IntegrateAndFire", "LayerReport", "QuantizedReLU", "Report", "fold_norms",
    "from_ann",
]  # fmt: skip
