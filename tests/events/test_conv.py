"""Which convolutions are computed by events."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.events.cases import events, observed
from tracetorch import snn
from tracetorch.events import mode, observed_products
from tracetorch.events.choice import conv_crossover
from tracetorch.events.conv import Window, window

IMAGES = (6, 8, 7, 9)
ONES = torch.ones(IMAGES)
CHANNELS_LAST: Any = torch.channels_last


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), ONES),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), ONES),
        (nn.Conv2d(8, 8, 2, padding="same"), ONES),
        (nn.Conv2d(8, 8, 3), ONES.to(memory_format=CHANNELS_LAST)),
        (nn.Conv2d(8, 8, 3).to(memory_format=CHANNELS_LAST), ONES),
        (nn.Conv2d(8, 8, 3), ONES[0]),
        (nn.Conv2d(8, 8, 3).bfloat16(), ONES.bfloat16()),
        (nn.Conv2d(8, 8, 3), ONES[:0]),
    ],
    ids=["groups", "circular", "uneven", "channels last", "weight", "3-D", "half", "no images"],
)
def test_what_stays_dense(layer: nn.Conv2d, x: Tensor) -> None:
    expected = layer(x)
    with mode("always"):
        y, (product,) = observed(layer, x)
    assert (product.events, bool(product.reason)) == (False, True)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()


def test_window_is_that_of_the_attributes_at_the_call() -> None:
    """A window is kept for its shapes; the attributes of the layer are read at every call."""
    layer, x = nn.Conv2d(4, 4, 3), torch.ones(2, 4, 5, 6)
    assert window(layer, x) == Window((1, 1), (0, 0), (1, 1), (3, 4))
    layer.padding, layer.stride = (1, 0), (2, 1)
    assert window(layer, x) == Window((2, 1), (1, 0), (1, 1), (3, 4))
    for shape in ((2, 4, 0, 6), (2, 3, 5, 6), (2, 4, 5, 1)):
        assert window(layer, torch.ones(shape)) is None
    layer.stride = [2, 1]  # type: ignore[assignment]
    assert window(layer, x) is None
    layer.stride, layer.padding = (1, 1), (1, 1, 1)
    assert window(layer, x) is None
    layer.padding = "same"
    assert window(layer, x) == Window((1, 1), (1, 1), (1, 1), (5, 6))
    layer.groups = 2
    assert window(layer, x) is None


def test_own_conv_forward_stays_dense() -> None:
    layer = nn.Conv2d(8, 8, 3)
    vars(layer)["_conv_forward"] = lambda x, weight, bias: x
    with mode("always"):
        assert observed(layer, ONES) == (ONES, [])


def test_auto_follows_density_and_channels() -> None:
    model: Any = nn.Sequential(
        *(nn.Conv2d(2, 32, 3, padding=1), snn.LIF(32, dim=-3)),
        *(nn.Conv2d(32, 64, 3), snn.LIF(64, dim=-3)),
    )
    for parameter in model[0].parameters():
        nn.init.zeros_(parameter)  # silent neurons
    x = torch.zeros(6, 8, 2, 17, 17)
    with tt.fuse.backend("auto"), observed_products() as products:
        tt.unroll(model, x)
    found = [(product.events, product.density) for _, product in products]
    assert found == [(False, None), (True, 0.0)]
    _, (product,) = observed(model[2], torch.ones(48, 32, 17, 17))
    assert product.reason == "too busy for events"


@pytest.mark.parametrize("case", ["trained", "no_grad", "frozen"])
def test_the_sums_of_a_gradient_count_where_there_is_one(case: str) -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1)
    layer.weight.requires_grad_(case != "frozen")
    with torch.set_grad_enabled(case != "no_grad"):
        _, (product,) = observed(layer, events(64, 64, 8, 8, density=0.1).float())
    assert product.events == (case != "trained")


def test_crossover_counts_the_sums_of_the_gradient() -> None:
    assert 0.4 < conv_crossover((256, 32, 17, 17), (64, 32, 3, 3), (17, 17)) < 0.6
    assert conv_crossover((256, 2, 34, 34), (32, 2, 3, 3), (34, 34)) == 0.0
    # many weights on few places are summed for longer than they are multiplied
    assert conv_crossover((64, 512, 2, 2), (512, 512, 3, 3), (2, 2)) == 0.0
    shape, weight = (64, 64, 8, 8), (64, 64, 3, 3)
    assert conv_crossover(shape, weight, (8, 8)) < 0.1
    assert 0.4 < conv_crossover(shape, weight, (8, 8), gradient=False) < 0.6
