"""Convert models to and from NIR, the exchange format of spiking networks and their chips."""

from tracetorch.nir.read import from_nir
from tracetorch.nir.write import save, to_nir

__all__ = ["from_nir", "save", "to_nir"]
