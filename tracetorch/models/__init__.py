"""Networks that people publish, each one file that shows the architecture.

An ordinary module each, whose ``forward`` is one time step; ``tt.unroll`` runs a sequence, or
``steps`` of one image, by layer, so that a batch norm sees all steps at once, as in the papers.
Neurons come by argument; left out, they are those of the paper, with constants that do not learn.
"""

from tracetorch.models.ms_resnet import MSResNet
from tracetorch.models.neuron import IF, NeuronBuilder
from tracetorch.models.qkformer import QKFormer
from tracetorch.models.sew_resnet import SEWResNet
from tracetorch.models.spike_driven_transformer import SpikeDrivenTransformer
from tracetorch.models.spikformer import Spikformer
from tracetorch.models.vgg import SpikingVGG

__all__ = [
    "IF",
    "MSResNet",
    "NeuronBuilder",
    "QKFormer",
    "SEWResNet",
    "SpikeDrivenTransformer",
    "Spikformer",
    "SpikingVGG",
]
