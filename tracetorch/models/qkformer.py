"""``QKFormer``: a transformer in three stages, the first two with a mask in place of attention."""

from __future__ import annotations

import math

from torch import Tensor, nn

from tracetorch.models.neuron import NeuronBuilder
from tracetorch.models.parts import Images, check_image, check_images, check_multiple, conv_norm
from tracetorch.models.spikformer import SelfAttention, TransformerBlock, builders, linear_head
from tracetorch.snn.module import TTModule
from tracetorch.snn.residual import SEWBlock


class QKFormer(TTModule):
    """QKFormer: hierarchical spiking transformer with query-key attention.

    ::

        image -> convolution, norm, max-pool, neuron
              -> three stages:  x = body(x) + shortcut(x), at half the size and twice the channels;
                                blocks:  x = x + attention(x);  x = x + mlp(x)
              -> mean over places -> linear

        attention of the first two stages:  q, k = neurons(norm(W x))
            mask = neuron(sum of q over a head);  output = neuron(norm(W (mask * k)))

    The mask keeps or drops a place, for each head: additions alone, in proportion to the number of
    places, where images are large. The last stage has the attention of Spikformer.

    Args:
        depths: number of blocks in each of the three stages; (1, 1, 2) in the paper's network for
            small images.
        width: channels of the last stage; a multiple of 8 and of four times ``heads``.
        heads: attention heads.
        num_classes: size of the output.
        in_channels: channels of the images.
        images: ``"imagenet"``, places of 16 x 16 in the last stage; ``"small"`` for some 32 x 32,
            places of 4 x 4, without the third convolution of the first stage.
        neuron: builds each neuron layer; an LIF with a time constant of two steps if left out, as
            in the paper.
        attention: builds the neurons behind attention; as ``neuron`` if left out, and where that is
            left out too, at half its threshold, as in the paper.

    Shape:
        One time step: ``[B, in_channels, H, W]`` to ``[B, num_classes]``. Average over time.

    Raises:
        ValueError: a kind is unknown, ``width`` no multiple, or ``depths`` not of three stages.

    Example:
        >>> import tracetorch as tt
        >>> net = QKFormer((1, 1, 2), 32, 2, 10, images="small")
        >>> tt.unroll(net, torch.rand(2, 3, 16, 16), steps=4).mean(0).shape
        torch.Size([2, 10])

    Reference: Zhou, Zhang, Zhou, Yu, Huang, Fan, Yuan, Ma, Zhou and Tian, QKFormer: hierarchical
    spiking transformer using Q-K attention, NeurIPS 2024.
    """

    def __init__(
        self,
        depths: tuple[int, int, int] = (1, 2, 7),
        width: int = 384,
        heads: int = 6,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        images: Images = "imagenet",
        neuron: NeuronBuilder | None = None,
        attention: NeuronBuilder | None = None,
    ) -> None:
        super().__init__()
        if len(depths) != 3:
            raise ValueError(f"depths must have one number for each of three stages, got {depths}.")
        reason = f"of 8 and of 4 * heads={4 * heads}"
        check_multiple("width", width, math.lcm(8, 4 * heads), reason)
        check_images(images)
        build, build_attention = builders(neuron, attention)
        large = images == "imagenet"
        inputs = width // 8
        pool = [nn.MaxPool2d(3, 2, padding=1)] if large else []
        layers = [*conv_norm(in_channels, inputs), *pool, build(inputs, dim=-3)]
        for stage, depth in enumerate(depths):
            outputs = width // 4 * 2**stage
            layers.append(embedding(inputs, outputs, large, stage == 0, build))
            for _ in range(depth):
                kind = SelfAttention if stage == 2 else QueryKeyAttention
                attend = kind(outputs, heads, build, build_attention)
                layers.append(TransformerBlock(attend, outputs, build))
            inputs = outputs
        self.stages = nn.Sequential(*layers)
        self.head = linear_head(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        check_image(x)
        logits: Tensor = self.head(self.stages(x).mean((-2, -1)))
        return logits


def embedding(
    inputs: int, outputs: int, large: bool, first: bool, build: NeuronBuilder
) -> SEWBlock:
    """Build the residual block that a stage begins with; the pool is where the paper has it."""
    pool = nn.MaxPool2d(3, 2, padding=1)
    conv, again = conv_norm(inputs, outputs), conv_norm(outputs, outputs)
    if large:
        body = [*conv, pool, build(outputs, dim=-3), *again, build(outputs, dim=-3)]
    elif first:
        body = [*conv, build(outputs, dim=-3)]
    else:
        body = [*conv, build(outputs, dim=-3), *again, pool, build(outputs, dim=-3)]
    stride = 2 if large or not first else 1
    shortcut = [*conv_norm(inputs, outputs, kernel=1, stride=stride), build(outputs, dim=-3)]
    return SEWBlock(nn.Sequential(*body), "add", nn.Sequential(*shortcut))


class QueryKeyAttention(nn.Module):
    """Token query-key attention (QKTA) over the places of an image ``[B, width, H, W]``."""

    def __init__(
        self, width: int, heads: int, build: NeuronBuilder, build_attention: NeuronBuilder
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Sequential(*conv_norm(width, 2 * width, 1), build(2 * width, dim=-3))
        self.attended = build_attention(heads, dim=-3)
        self.project = nn.Sequential(*conv_norm(width, width, 1, bias=True), build(width, dim=-3))

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        # each [B, heads, width / heads, H, W]
        q, k = self.qk(x).unflatten(1, (2, self.heads, -1)).unbind(1)
        mask = self.attended(q.sum(2)).unsqueeze(2)
        spikes: Tensor = self.project((mask * k).flatten(1, 2))
        return spikes
