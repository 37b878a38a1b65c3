"""Load a network of the zoo from the file that the package holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from tracetorch.checkpoint import load as load_file
from tracetorch.zoo.networks import Network, network, usual_defaults

FOLDER = Path(__file__).parent / "files"


def file_of(name: str) -> Path:
    """Return the path of a network's tensors."""
    return FOLDER / f"{name}.safetensors"


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(name: str) -> nn.Module:
    """Load a trained network of the zoo, in evaluation mode and at rest.

    It is built by its function, and its tensors come from a file of the package, which
    :func:`tt.load` compares with what was built. Nothing is downloaded; PyTorch's random numbers
    are not used.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no such network; its file is damaged, or does not fit it any more.

    Example:
        >>> import tracetorch as tt
        >>> model = load("rows-lif")
        >>> rows = torch.rand(28, 1, 28)  # [T, B, 28]
        >>> tt.unroll(model, rows)[-1].shape
        torch.Size([1, 10])
    """
    return loaded(network(name), file_of(name))


@usual_defaults()
def loaded(network: Network, path: Path) -> nn.Module:
    """Build a network and load a file into it."""
    with torch.random.fork_rng(devices=[]):
        model = network.build()
    load_file(path, model)
    return model.eval()
