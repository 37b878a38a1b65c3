"""Find the spike functions among the options of a neuron layer."""

from __future__ import annotations

import torch
from torch import nn

from tracetorch.snn.sequence_layer import SequenceLayer


def spike_functions(layer: nn.Module) -> list[str]:
    """List the options of a neuron layer that map to 0 and 1; none for a layer without spikes."""
    if not isinstance(layer, SequenceLayer):
        return []
    return [name for name in layer._options if _is_spike_function(getattr(layer, name))]


def _is_spike_function(option: object) -> bool:
    if not callable(option):
        return False
    device = None
    # A surrogate with parameters of its own runs on their device only.
    if isinstance(option, nn.Module):
        device = next((p.device for p in option.parameters()), None)
    # Any callable may be a surrogate, so its values decide, not its type.
    with torch.no_grad():
        spikes = option(torch.linspace(-4, 4, 9, device=device))
    return isinstance(spikes, torch.Tensor) and bool(((spikes == 0) | (spikes == 1)).all())
