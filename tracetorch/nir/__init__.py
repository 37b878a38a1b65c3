"""Convert models to and from NIR, the exchange format of spiking networks and their chips.

NIR describes networks in continuous time and leaves three things open, which ``from_nir`` decides
and documents: a membrane starts at rest; a synapse is updated before its membrane; what leads back
in a cycle carries the spikes of the step before (``wiring.py``), none at the first step. A soft
reset is written so, ``Threshold -> Scale(-beta theta / gain) -> LI``. A constant drive is
written as ``Scale(0) -> Threshold(-1) -> Scale(bias)`` and not as ``v_leak``, because simulators
differ on where a leaking membrane starts.

A file is data that one trusts as one's own: what is damaged is an error, and nothing in it leads to
another file, but one that was made to fill the memory, or to stop HDF5's library, is not refused.
"""

from tracetorch.nir.read import from_nir
from tracetorch.nir.write import save, to_nir

__all__ = ["from_nir", "save", "to_nir"]
