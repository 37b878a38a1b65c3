"""Read a model as products and pools, sums, maxima and activations; norms are folded."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from tracetorch.convert.activations import QuantizedReLU
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.quantize.prepared import unparametrized
from tracetorch.snn import model_graph
from tracetorch.snn.batch_norm import norm_affine, scale_product
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.model_graph import check_plain_weights, is_layer, read_model

Kind: TypeAlias = Literal["input", "linear", "max", "cat", "sum", "activation"]

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_LINEAR = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, *_AVERAGES)
_MAXIMA = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_NOTHING = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_ALLOWED = (
    "Linear, Conv1d, Conv2d, Conv3d, batch norms, ReLU, ReLU6, Hardtanh(0, c), clamp(0, c), "
    "convert.QuantizedReLU, average and maximum pools, Flatten, Dropout, Identity, cat, sums, "
    "differences, and products with numbers"
)
# what is taken of the first value and of the other, of which alpha times
_SUMS = {"add": (1, 1), "sub": (1, -1), "subtract": (1, -1), "rsub": (-1, 1)}
_SCALES = {"mul": 1, "multiply": 1, "div": -1, "divide": -1, "true_divide": -1}
_CATS = ("cat", "concat", "concatenate")


@dataclass(frozen=True)
class Activation:
    """A ReLU: ``min(max(x, 0), clip)``, rounded to levels if it has some."""

    clip: float | None = None  # the largest value; None for none
    levels: int | None = None  # steps between 0 and the clip; None where it is not rounded


@dataclass(frozen=True, eq=False)
class Node:
    """Value of a network, computed from others; each is equal to itself alone."""

    name: str  # in the user's model, for messages and reports
    # "input"; "linear", a product or a pool that is linear; "max", a pool; "cat"; "sum"; or
    # "activation"
    kind: Kind
    inputs: tuple[int, ...]  # places of the values it is computed from
    shape: torch.Size  # of the value, of a batch
    module: nn.Module | None = None  # what computes it; of an input and a sum None
    activation: Activation | None = None  # of that kind


Compute = Callable[[Node, list[Tensor]], Tensor]


@dataclass(frozen=True)
class Network:
    """Nodes in the order of their computation, the input first, and the place of the output."""

    nodes: tuple[Node, ...]
    output: int

    def run(self, x: Tensor, compute: Compute) -> Tensor:
        """Return the output for an input; values that are no longer needed are dropped.

        ``compute`` returns the value of any other node but a sum from those of its inputs.
        """
        remaining = Counter(source for node in self.nodes for source in node.inputs)
        remaining[self.output] += 1
        values: dict[int, Tensor] = {}
        for place, node in enumerate(self.nodes):
            inputs = [values[source] for source in node.inputs]
            if node.kind == "input":
                values[place] = x
            elif node.kind == "sum":
                values[place] = sum(inputs[1:], inputs[0])
            else:
                values[place] = compute(node, inputs)
            for source in (*node.inputs, place):
                remaining[source] -= source != place
                if not remaining[source]:
                    values.pop(source, None)
        return values[self.output]


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Cat(nn.Module):
    """Values behind each other in a dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, self.dim)


def ann(node: Node, inputs: list[Tensor]) -> Tensor:
    # copies, for an activation may write in place
    given = [x.clone() for x in inputs] if node.kind == "activation" else inputs
    return cast(Tensor, cast(nn.Module, node.module)(*given))


def read_network(model: nn.Module, batch: Tensor) -> Network:
    """Return the network of a model as it is in evaluation, its numbers in float64."""
    check_plain_weights(model)
    double = copy.deepcopy(model).eval().double()
    try:
        graph = read_model(
            double, batch[:2].double(), is_leaf=lambda m: is_layer(m) or type(m) is QuantizedReLU
        )
    except ValueError as error:
        raise ValueError(f"{error} What can be converted: {_ALLOWED}.") from error
    network = _Reader(graph).read()
    wanted = double(batch.double())
    found = network.run(batch.double(), ann)
    near = torch.isclose(found, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
    # where rounding decides a level, few values are another
    if not float(near.double().mean()) > 0.99:
        raise ValueError(
            "the model's output on the batch is another than that of its modules and sums: its "
            f"forward computes something besides. What can be converted: {_ALLOWED}."
        )
    return network


def _refused(place: str) -> ValueError:
    return ValueError(f"{place} cannot be converted. What can be: {_ALLOWED}.")


class _Reader:
    def __init__(self, graph: model_graph.ModelGraph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.places: dict[Any, int] = {}

    def read(self) -> Network:
        for node in self.graph.nodes:
            if node in self.graph.inputs:
                self.places[node] = self.add(node, "input", ())
            elif node.operation.rstrip("_") in _SUMS:
                self.places[node] = self.add_up(node)
            elif node.operation in _CATS:
                self.places[node] = self.concatenate(node)
            else:
                self.places[node] = self.call(node)
        if not isinstance(self.graph.output, model_graph.Node):
            raise ValueError("the model must return one tensor, it returns several.")
        return Network(tuple(self.nodes), self.places[self.graph.output])

    def add(
        self,
        node: model_graph.Node,
        kind: Kind,
        inputs: tuple[int, ...],
        module: nn.Module | None = None,
        activation: Activation | None = None,
    ) -> int:
        shape = cast(torch.Size, node.shape)
        self.nodes.append(Node(node.name, kind, inputs, shape, module, activation))
        return len(self.nodes) - 1

    def add_up(self, node: model_graph.Node) -> int:
        given = dict(zip(("input", "other", "alpha"), node.args, strict=False)) | node.kwargs
        values, alpha = [given.pop("input", None), given.pop("other", None)], given.pop("alpha", 1)
        if node.inputs != values or given:
            raise _refused(node.place)
        one, other = (each.shape for each in node.inputs)
        if one is None or one != other:
            raise ValueError(
                f"{node.place} adds values of the shapes {list(one or ())} and "
                f"{list(other or ())}; give both one shape."
            )
        name = node.operation.rstrip("_")
        factors = [float(factor) for factor in _SUMS[name]]
        factors[name != "rsub"] *= alpha
        places = [self.places[each] for each in values]
        scaled = [
            place if factor == 1 else self.add(node, "linear", (place,), Scaled(factor))
            for place, factor in zip(places, factors, strict=True)
        ]
        return self.add(node, "sum", tuple(scaled))

    def concatenate(self, node: model_graph.Node) -> int:
        given = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
        dim = given.pop("dim", 0) % len(node.shape or (1,))
        if node.inputs != list(given.pop("tensors", ())) or given or not dim:
            raise _refused(node.place)
        return self.add(node, "cat", tuple(self.places[each] for each in node.inputs), Cat(dim))

    def call(self, node: model_graph.Node) -> int:
        """Add what a module computes, or a function for which there is one."""
        if not node.args or node.inputs != [node.args[0]]:
            raise _refused(node.place)
        (source,) = node.inputs
        module = node.module or _module_of(node)
        place, kind = self.places[source], plain_class(module)
        activation = _activation(module, node.place)
        if kind in _NOTHING:
            return place
        if activation is not None:
            return self.add(node, "activation", (place,), module, activation)
        if isinstance(module, BatchNormBase):
            return self.normalize(node, source, module)
        if kind in PRODUCTS or "parametrizations" in module._modules:
            return self.add(node, "linear", (place,), _plain(module, node.place))
        if kind in _MAXIMA and not getattr(module, "return_indices", False):
            return self.add(node, "max", (place,), module)
        flattens = isinstance(module, nn.Flatten) and module.start_dim
        # a mean over places is a pool and a Flatten
        if flattens or kind in _LINEAR or isinstance(module, nn.Sequential | Scaled):
            return self.add(node, "linear", (place,), module)
        raise _refused(node.place)

    def normalize(self, node: model_graph.Node, source: model_graph.Node, norm: nn.Module) -> int:
        """Fold a batch norm into the product before it, or into one that it is itself."""
        affine = norm_affine(norm)
        if affine is None:
            raise ValueError(
                f"{node.place} has no running statistics to fold. It needs "
                "track_running_stats=True."
            )
        place, shape = self.places[source], cast(torch.Size, source.shape)
        before = self.nodes[place].module
        # the product's own value, and not one that a dropout has passed on
        alone = isinstance(source.module, PRODUCTS) and self.graph.users[source] == [node]
        outputs_dim = -1 if isinstance(before, nn.Linear) else 1 - len(shape)
        if alone and isinstance(before, PRODUCTS) and outputs_dim % len(shape) == 1:
            scale_product(before, *affine)
            return place
        channels = shape[1]
        product: nn.Linear | nn.Conv2d
        if len(shape) == 2:
            product, weight = nn.Linear(channels, channels, bias=False), torch.eye(channels)
        else:
            convolution = cast(type[nn.Conv2d], PRODUCTS[len(shape) - 2])
            product = convolution(channels, channels, 1, groups=channels, bias=False)
            weight = torch.ones_like(product.weight)
        product.to(affine[0])
        product.weight.data.copy_(weight)
        scale_product(product, *affine)
        return self.add(node, "linear", (place,), product)


def _activation(module: nn.Module, place: str) -> Activation | None:
    """Return what kind of ReLU a module is; ``None`` where it is none."""
    if type(module) is QuantizedReLU:  # a subclass may compute something else
        return Activation(float(module.largest.detach()), module.levels)
    if type(module) is nn.ReLU:
        return Activation()
    if type(module) not in (nn.ReLU6, nn.Hardtanh):
        return None
    if cast(nn.Hardtanh, module).min_val != 0:
        raise ValueError(f"{place} must clip at 0: rates are not negative.")
    return Activation(float(cast(nn.Hardtanh, module).max_val))


def _module_of(node: model_graph.Node) -> nn.Module:
    name, args, kwargs = node.operation.rstrip("_"), node.args[1:], dict(node.kwargs)
    shape = cast(torch.Size, node.inputs[0].shape)
    kwargs.pop("inplace", None)
    if name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "contiguous"):
        return nn.Identity()
    if name in ("view", "reshape") and node.shape == (shape[0], shape[1:].numel()):
        return nn.Flatten()
    if name == "flatten":
        return nn.Flatten(*args, **({} if args else {"start_dim": 0}) | kwargs)
    if name in _CLAMPS:
        ends = dict(zip(_CLAMPS[name], args, strict=False)) | kwargs
        low, high = ends.get("min"), ends.get("max")
        if low is None or float(low) != 0 or not (high is None or float(high) > 0):
            raise ValueError(f"{node.place} must clip at 0, and at a positive number or at none.")
        return nn.ReLU() if high is None else nn.Hardtanh(0.0, float(high))
    if name == "neg":
        return Scaled(-1.0)
    number = args[0] if name in _SCALES and len(args) == 1 and not kwargs else None
    if isinstance(number, int | float) and (number or name.startswith("mul")):
        return Scaled(float(number) ** _SCALES[name])
    if name == "mean":
        given = dict(zip(("dim", "keepdim"), args, strict=False)) | kwargs
        dims = given.get("dim")
        dims = dims if isinstance(dims, tuple | list) else (dims,)
        places = set(range(2, len(shape)))
        if None in dims or not places or {dim % len(shape) for dim in dims} != places:
            raise ValueError(
                f"{node.place} can be converted where it takes the mean of all places, dim=(2, 3) "
                "of an image."
            )
        pool = _AVERAGES[len(places) - 1](1)
        return pool if given.get("keepdim") else nn.Sequential(pool, nn.Flatten())
    make = _FUNCTIONS.get(name)
    if make is None:
        raise _refused(node.place)
    if name.startswith("max_pool"):  # the function has its last two in another order
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return make(**dict(zip(names, args, strict=False)) | kwargs)
    return make(*args, **kwargs)


_CLAMPS = {
    **dict.fromkeys(("clamp", "clip"), ("min", "max")),
    "clamp_min": ("min",),
}


_FUNCTIONS: Mapping[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    **{f"avg_pool{i + 1}d": kind for i, kind in enumerate(_LINEAR[:3])},
    **{f"adaptive_avg_pool{i + 1}d": kind for i, kind in enumerate(_AVERAGES)},
    **{f"max_pool{i + 1}d": kind for i, kind in enumerate(_MAXIMA[:3])},
}


def _plain(module: nn.Module, place: str) -> nn.Module:
    """Return a copy of a product whose parameters are plain ones."""
    copied = copy.deepcopy(module)
    for name, value in unparametrized(copied).items():
        copied.register_parameter(name, nn.Parameter(value))
    if type(copied) not in PRODUCTS:
        raise _refused(place)
    return copied
