"""Convert models to and from NIR, the exchange format of spiking networks and their chips.

NIR describes networks in continuous time and leaves three things open, which ``from_nir`` decides
and documents: a membrane starts at rest; a synapse is updated before its membrane; what leads back
in a cycle carries the spikes of the step before (``wiring.py``), none at the first step. A soft
reset is written so, ``Threshold -> Scale(-beta theta / gain) -> LI``. A constant drive is
written as ``Scale(0) -> Threshold(-1) -> Scale(bias)`` and not as ``v_leak``, because simulators
differ on where a leaking membrane starts.

Neurons besides the twelve layers are written from their ``step``, run on symbols
(``step_algebra.py``): a value is a sum of factors times others, down to the input, old states and
spikes, and anything else is refused by name. Two values are compared or multiplied in no node, so a
state behind a reset to zero, a product with a spike, can be a LIF that nothing else reads.

The node of an exported layer describes the layer in its metadata, with a digest over the nodes. The
reader restores the layer if the digest is right, and reads the nodes if it is not.

A model is read by ``tracetorch.snn.model_graph``, and the NIR graph is ordered here: ``nirtorch``
is not needed. Shapes are those that PyTorch gives on the device meta. A file is data that one
trusts as one's own: what is damaged is an error, and nothing in it leads to another file, but one
that was made to fill the memory, or to stop HDF5's library, is not refused.
"""

from tracetorch.nir.read import from_nir
from tracetorch.nir.write import save, to_nir

__all__ = ["from_nir", "save", "to_nir"]
