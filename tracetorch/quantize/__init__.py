"""Quantise a network: train it through integer forwards, and convert it to integers, exactly.

``prepare`` replaces every layer by one of ``tt.integers``, or by a neuron of a chip, whose integers
are parametrized by the floats that learn: they are scaled and rounded in every call, straight
through. ``convert`` keeps the integers and forgets the floats, so that both compute the same,
exactly; nothing is computed twice.

Scales. A state has one integer unit for each channel, or for the layer where the target has one
threshold. It is found on a sample: as fine as the width of the states allows, with as much again in
reserve. Weights are a coarser multiple of it by a power of two, the shift of their product. Spikes
count as one integer.

What has an integer form: a chain of modules, each given what the one before returned, and branches
whose spikes are added. Linear and convolutions, behind them a batch norm, pools, ``Flatten`` and
delays of whole steps, then one of the twelve layers, also in a ``snn.Recurrent``. A ``Readout`` of
any kind can only be the last. All else is refused by name: nothing stays a float.
"""

from tracetorch.quantize.convert import LayerReport, Report, convert
from tracetorch.quantize.prepare import prepare
from tracetorch.quantize.prepared import Prepared

__all__ = ["LayerReport", "Prepared", "Report", "convert", "prepare"]
