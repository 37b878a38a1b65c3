"""Convert a trained network: fold batch norms, or make ReLUs integrate-and-fire neurons, certified.

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
is within ``D / T`` of the clipped network's, ``D`` from this recursion (``plan.py``). The clipped
network is within ``E`` of the model: ``E = |W| E_before + e``, where ``e`` is what clip and
rounding change, since a clipped ReLU moves by no more than its input. Rates and clipped values lie
between 0 and ``c``, the model's between 0 and ``m``, its own clip or the largest on the batch, in
the channel if that has a threshold of its own, not below ``c``: so neither ``E`` nor the sum of
both is ever more than ``m``.

Equality. A ReLU of ``L`` levels rounds ``L z / c`` by ``floor(. + 1/2)``, between 0 and ``L``. A
neuron with the threshold ``c T / L`` computes the same of what it has received, as soon as its
membrane lies between 0 and the threshold, or it has sent no spikes and lies below, or all ``L`` and
lies above. Under a constant input it does after ``T`` steps. Under any other it does if its spikes
have a sign, so that it can take back what it sent too early, and it gets steps in which nothing new
arrives: ``ceil(L / burst) - 1`` for each layer behind the first. Nothing else is needed: not the
times of spikes, nor the signs of weights.
"""

from tracetorch.convert.fold_norms import fold_norms
from tracetorch.convert.from_ann import Converted, from_ann
from tracetorch.convert.integrate_and_fire import IntegrateAndFire
from tracetorch.convert.quantized_relu import QuantizedReLU
from tracetorch.convert.report import LayerReport, Report

__all__ = [
    "Converted",
    "IntegrateAndFire",
    "LayerReport",
    "QuantizedReLU",
    "Report",
    "fold_norms",
    "from_ann",
]
