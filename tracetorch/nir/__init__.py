"""Convert models to and from NIR, the exchange format of spiking networks and their chips.

NIR. Time is continuous there, and three things are left open, decided as ``from_nir`` documents: a
membrane starts at rest, a synapse moves before its membrane, the edge that closes a cycle brings
the step before, zero at first. A soft reset is such an edge: ``Threshold -> Scale(-beta theta /
gain) -> LI``. A constant drive is ``Scale(0) -> Threshold(-1) -> Scale(bias)``, not ``v_leak``, for
simulators differ on where a leaking membrane starts. An exported layer describes itself in its
metadata, with a digest over the nodes; the reader restores it while the digest is right.
``torch.fx`` follows the model and our own walk the graph: ``nirtorch`` is not needed. A file is
measured before anything is taken from it, and its texts are read by hand, for HDF5's library walks
a damaged heap of them without end.
"""

from tracetorch.nir.read import from_nir
from tracetorch.nir.write import save, to_nir

__all__ = ["from_nir", "save", "to_nir"]
