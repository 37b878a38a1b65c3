"""``QKFormer``: a transformer in three stages, the first two with a mask in place of attention."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor, nn

from tracetorch.core.checks import check_choice
from tracetorch.models import parts
from tracetorch.models.neuron import NeuronBuilder
from tracetorch.models.parts import Images, conv_norm, describe_network
from tracetorch.models.spikformer import SelfAttention, TransformerBlock, builders, linear_head
from tracetorch.snn.module import TTModule
from tracetorch.snn.residual import SEWBlock


@describe_network
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
            small images; in each of two for events, (1, 1) in the paper's.
        width: channels of the last stage; a multiple of 8 and of four times ``heads``; for events
            of 16 and of twice ``heads``.
        heads: attention heads.
        images: ``"imagenet"``, places of 16 x 16 in the last stage; ``"small"`` for some 32 x 32,
            places of 4 x 4, without the third convolution of the first stage; ``"events"`` for
            frames of an event camera of some 128 x 128, two stages with places of 8 x 8 and 16 x
            16, the second with the attention of Spikformer, and layers of ``mlp`` of one width.

    Example:
        >>> import tracetorch as tt
        >>> net = QKFormer((1, 1, 2), 32, 2, 10, images="small")
        >>> tt.unroll(net, torch.rand(2, 3, 16, 16), steps=4).mean(0).shape
        torch.Size([2, 10])
        >>> net = QKFormer((1, 1), 32, 2, 11, in_channels=2, images="events")
        >>> tt.unroll(net, torch.rand(4, 2, 2, 32, 32)).mean(0).shape
        torch.Size([2, 11])

    Reference: Zhou, Zhang, Zhou, Yu, Huang, Fan, Yuan, Ma, Zhou and Tian, QKFormer: hierarchical
    spiking transformer using Q-K attention, NeurIPS 2024.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (1, 2, 7),
        width: int = 384,
        heads: int = 6,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        images: Images | Literal["events"] = "imagenet",
        neuron: NeuronBuilder | None = None,
        attention: NeuronBuilder | None = None,
    ) -> None:
        super().__init__()
        check_choice("images", images, (*get_args(Images), "events"))
        events, large = images == "events", images == "imagenet"
        stages = 2 if events else 3
        if len(depths) != stages:
            number = "two" if events else "three"
            raise ValueError(
                f"depths must have one number for each of {number} stages, got {depths}."
            )
        first = 2 ** (stages - 1)  # the last stage has so many times the channels of the first
        reason = f"of {16 if events else 8} and of {first} * heads={first * heads}"
        parts.check_multiple("width", width, math.lcm(16 if events else 8, first * heads), reason)
        build, build_attention = builders(neuron, attention)
        inputs = width // 8
        pool = [nn.MaxPool2d(3, 2, padding=1)]
        layers: list[nn.Module] = []
        if events:
            layers = [*conv_norm(in_channels, inputs // 2), build(inputs // 2, dim=-3)]
            in_channels = inputs // 2
        layers += [*conv_norm(in_channels, inputs), *(pool if images != "small" else [])]
        layers.append(build(inputs, dim=-3))
        for stage, depth in enumerate(depths):
            outputs = width // first * 2**stage
            kind = "events" if events and stage == 0 else "large" if large else "small"
            layers.append(embedding(inputs, outputs, kind, stage == 0, build))
            for _ in range(depth):
                attention_kind = SelfAttention if stage == stages - 1 else QueryKeyAttention
                attend = attention_kind(outputs, heads, build, build_attention)
                layers.append(TransformerBlock(attend, outputs, build, 1 if events else 4))
            inputs = outputs
        self.stages = nn.Sequential(*layers)
        self.head = linear_head(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        parts.check_image(x)
        logits: Tensor = self.head(self.stages(x).mean((-2, -1)))
        return logits


def embedding(inputs: int, outputs: int, kind: str, first: bool, build: NeuronBuilder) -> SEWBlock:
    """Build the residual block that a stage begins with; the pool is where the paper has it."""
    pool = nn.MaxPool2d(3, 2, padding=1)
    between = 2 * inputs if kind == "events" else outputs
    conv, again = conv_norm(inputs, between), conv_norm(between, outputs)
    if kind != "small":
        body = [*conv, pool, build(between, dim=-3), *again]
        body += [nn.MaxPool2d(3, 2, padding=1)] if kind == "events" else []
        body.append(build(outputs, dim=-3))
    elif first:
        body = [*conv, build(outputs, dim=-3)]
    else:
        body = [*conv, build(outputs, dim=-3), *again, pool, build(outputs, dim=-3)]
    stride = 4 if kind == "events" else 1 if first and kind == "small" else 2
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
        # each [B, heads, width / heads, H, W]
        q, k = self.qk(x).unflatten(1, (2, self.heads, -1)).unbind(1)
        mask = self.attended(q.sum(2)).unsqueeze(2)
        spikes: Tensor = self.project((mask * k).flatten(1, 2))
        return spikes
