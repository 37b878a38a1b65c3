from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.events.cases import (
    DENSITIES,
    check_close,
    check_equal,
    dyadic,
    event_passes,
    events,
    results,
)
from tracetorch import snn
from tracetorch.events import mode, observed_products
from tracetorch.events.choice import conv_crossover
from tracetorch.events.conv import Window, window

# images, inputs, outputs, height, width, and the arguments of the layer
WINDOWS: dict[str, tuple[tuple[int, int, int, int, int], dict[str, Any]]] = {
    "padded": ((19, 5, 20, 9, 11), {"kernel_size": 3, "padding": 1}),
    "one": ((1, 1, 1, 1, 1), {"kernel_size": 1}),
    "stride": ((3, 8, 16, 9, 12), {"kernel_size": 3, "padding": 1, "stride": 2}),
    "stride past the kernel": (
        (3, 4, 6, 9, 11),
        {"kernel_size": (2, 5), "stride": 7, "padding": 2},
    ),
    "dilation": ((5, 3, 33, 10, 9), {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "all differ": (
        (33, 4, 70, 9, 11),
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 3)},
    ),
    "same": ((2, 4, 5, 7, 9), {"kernel_size": (3, 5), "padding": "same", "dilation": 2}),
    "valid": ((2, 4, 5, 7, 9), {"kernel_size": 2, "padding": "valid", "dilation": 2}),
    "wide padding": ((2, 4, 130, 4, 3), {"kernel_size": 3, "padding": 4}),
}


def made(name: str, bias: bool = True) -> tuple[nn.Conv2d, tuple[int, int, int, int]]:
    (images, inputs, outputs, height, width), arguments = WINDOWS[name]
    layer = dyadic(nn.Conv2d(inputs, outputs, bias=bias, **arguments))
    return layer, (images, inputs, height, width)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("name", WINDOWS)
def test_equals_the_dense_convolution(name: str, density: float | None, weighted: bool) -> None:
    layer, shape = made(name)
    check_equal(layer, events(*shape, density=density, weighted=weighted))


@pytest.mark.parametrize("name", ["padded", "all differ"])
def test_without_a_bias(name: str) -> None:
    layer, shape = made(name, bias=False)
    check_equal(layer, events(*shape, density=0.1))


@pytest.mark.parametrize("threads", [1, 2])
def test_agrees_on_any_numbers_whatever_the_threads(threads: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3, padding=1)
    x = events(40, 16, 12, 12, density=0.1).float() * torch.randn(40, 16, 12, 12)
    check_close(layer, x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = results(layer, x, by_events=True)
    finally:
        torch.set_num_threads(before)
    again = results(layer, x, by_events=True)
    assert torch.equal(found["output"], again["output"])
    assert torch.equal(found["weight"], again["weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_event(value: float) -> None:
    layer, shape = made("padded")
    with torch.no_grad():
        layer.weight.abs_().add_(1)  # the dense one multiplies infinity by 0, which is NaN
    x = events(*shape, density=0.2)
    x[4, 2, 3, 5] = value
    found, expected = (results(layer, x, by_events=by_events) for by_events in (True, False))
    assert torch.equal(found["output"].isfinite(), expected["output"].isfinite())
    finite = expected["output"].isfinite()
    assert torch.equal(found["output"][finite], expected["output"][finite])
    assert torch.equal(found["x"], expected["x"])
    assert not found["weight"][:, 2].isfinite().all()


IMAGES = (6, 8, 7, 9)


def channels_last(layer: nn.Conv2d) -> nn.Conv2d:
    layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
    return layer


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), torch.ones(IMAGES)),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), torch.ones(IMAGES)),
        (nn.Conv2d(8, 8, 2, padding="same"), torch.ones(IMAGES)),
        (nn.Conv2d(8, 8, 3), torch.ones(IMAGES).to(memory_format=torch.channels_last)),
        (channels_last(nn.Conv2d(8, 8, 3)), torch.ones(IMAGES)),
        (nn.Conv2d(8, 8, 3), torch.ones(IMAGES[1:])),
        (nn.Conv2d(8, 8, 3).bfloat16(), torch.ones(IMAGES).bfloat16()),
        (nn.Conv2d(8, 8, 3), torch.ones(0, *IMAGES[1:])),
    ],
    ids=["groups", "circular", "uneven", "channels last", "weight", "3-D", "half", "no images"],
)
def test_what_stays_dense(layer: nn.Conv2d, x: Tensor) -> None:
    expected = layer(x)
    with mode("always"), event_passes((layer,)), observed_products() as products:
        y = layer(x)
    assert [product.events for _, product in products] == [False]
    assert products[0][1].reason
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
    even = nn.Conv2d(4, 4, 2, padding="same")
    assert window(even, x) is None
    layer.groups = 2
    assert window(layer, x) is None


def test_own_conv_forward_stays_dense() -> None:
    layer = nn.Conv2d(8, 8, 3)
    vars(layer)["_conv_forward"] = lambda x, weight, bias: x
    x = torch.ones(IMAGES)
    with mode("always"), event_passes((layer,)), observed_products() as products:
        assert layer(x) is x
    assert products == []


def test_auto_follows_density_and_channels() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(2, 32, 3, padding=1),
        snn.LIF(32, dim=-3),
        nn.Conv2d(32, 64, 3),
        snn.LIF(64, dim=-3),
    )
    with torch.no_grad():
        model[0].weight.fill_(0.0)
        model[0].bias.fill_(0.0)  # silent neurons
    x = torch.zeros(6, 8, 2, 17, 17)
    with tt.fuse.backend("auto"), observed_products() as products:
        tt.unroll(model, x)
    assert [(product.events, product.density) for _, product in products] == [
        (False, None),
        (True, 0.0),
    ]
    with event_passes((model[2],)), observed_products() as products:
        model[2](torch.ones(48, 32, 17, 17))
    assert products[0][1].reason == "too busy for events"


@pytest.mark.parametrize("case", ["trained", "no_grad", "frozen"])
def test_the_sums_of_a_gradient_count_where_there_is_one(case: str) -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1)
    layer.weight.requires_grad_(case != "frozen")
    x = events(64, 64, 8, 8, density=0.1).float()
    with (
        tt.fuse.backend("auto"),
        event_passes((layer,)),
        observed_products() as products,
        torch.set_grad_enabled(case != "no_grad"),
    ):
        layer(x)
    assert [product.events for _, product in products] == [case != "trained"]


def test_crossover_counts_the_sums_of_the_gradient() -> None:
    assert 0.4 < conv_crossover((256, 32, 17, 17), (64, 32, 3, 3), (17, 17)) < 0.6
    assert conv_crossover((256, 2, 34, 34), (32, 2, 3, 3), (34, 34)) == 0.0
    # many weights on few places are summed for longer than they are multiplied
    assert conv_crossover((64, 512, 2, 2), (512, 512, 3, 3), (2, 2)) == 0.0
    shape, weight = (64, 64, 8, 8), (64, 64, 3, 3)
    assert conv_crossover(shape, weight, (8, 8)) < 0.1
    assert 0.4 < conv_crossover(shape, weight, (8, 8), gradient=False) < 0.6
