"""Read a model as a graph: follow its forward, fold norms, drop dropout, refuse all else."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, fx, nn

from tracetorch.convert.graph import Activation, Graph, Node
from tracetorch.convert.quantized_relu import QuantizedReLU
from tracetorch.core.hooks import call_is_forward
from tracetorch.core.torch_private import BatchNormBase
from tracetorch.core.walk import named_modules
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.forward_tracing import IN_PLACE, trace_forward
from tracetorch.snn.module import keeps_states
from tracetorch.snn.norm_folding import norm_affine, scale_product

# of the user's own modules, by class: the clip and the levels of one
Activations: TypeAlias = Mapping[
    type[Any], Callable[[Any], tuple[float | Tensor | None, int | None]]
]

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_POOLS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_MAXIMA = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_NOTHING = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_ADDING = (operator.add, torch.add, "add", *IN_PLACE)
_RELUS = (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
_CLAMPS = (torch.clamp, torch.clip, torch.clamp_, torch.clip_, "clamp", "clip", "clamp_", "clip_")
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)
_OVERWRITING = (F.relu_, torch.relu_, torch.clamp_, torch.clip_)
_SIZES = ("size", "dim", getattr, operator.getitem)
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    torch.flatten: nn.Flatten,
    "flatten": nn.Flatten,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_avg_pool3d: nn.AdaptiveAvgPool3d,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.avg_pool3d: nn.AvgPool3d,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.max_pool3d: nn.MaxPool3d,
}
_ADVICE = (
    "A network that is converted has no branches that depend on data; call modules, and add what "
    "they give."
)
_ALLOWED = (
    "Linear, Conv1d, Conv2d, Conv3d, batch norms, ReLU, ReLU6, Hardtanh(0, c), clamp(0, c), "
    "convert.QuantizedReLU, average and maximum pools, Flatten, Dropout, Identity, and sums"
)
# shares of a level above its lower end at which an activation is compared: not at the ends
_PLACES = (0.05, 0.45, 0.55, 0.95)


def read_model(model: nn.Module, batch: Tensor, activations: Activations) -> Graph:
    """Return the graph of a model as it is in evaluation, its numbers in float64.

    Args:
        model: nothing of it changes.
        batch: an input.
        activations: clip and levels of the user's own modules, by class.

    Raises:
        TypeError: ``forward`` cannot be followed.
        ValueError: something in it cannot be converted, or computes something else than the graph.
    """
    _check_modules(model)
    kinds: tuple[type[Any], ...] = (QuantizedReLU, *activations)
    double = copy.deepcopy(model).eval().double()
    program = trace_forward(double, lambda module: isinstance(module, kinds), _ADVICE)
    reader = _Reader(program, double, activations)
    # one sample: the reader keeps every value
    graph = reader.read(batch[:1].double())
    wanted = double(batch.double())
    found = graph.run(batch.double(), ann)
    if found.shape != wanted.shape:
        raise ValueError(_differs("has another shape"))
    near = torch.isclose(found, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
    # where rounding decides a level, few values are another
    if not float(near.double().mean()) > 0.99:
        raise ValueError(_differs("is another"))
    return graph


def ann(node: Node, inputs: list[Tensor]) -> Tensor:
    """Compute a node as the model does."""
    # a copy, for an activation may write in place
    x = inputs[0].clone() if node.kind == "activation" else inputs[0]
    return cast(Tensor, cast(nn.Module, node.module)(x))


def _differs(how: str) -> str:
    return (
        f"the model's output on the batch {how} than that of its modules and sums: its forward "
        "computes something that torch.fx does not see, or changes a value in place that is used "
        f"again. What can be converted: {_ALLOWED}."
    )


def _label(path: str, module: nn.Module) -> str:
    """Return how messages name a module."""
    return f"{path or 'the model'} ({type(module).__name__})"


def _check_modules(model: nn.Module) -> None:
    """Raise where a call of a module is more than its class's forward, or keeps something."""
    for path, module in named_modules(model):
        if not call_is_forward(module):
            raise ValueError(
                f"{_label(path, module)} has a hook or a forward of its own, or is compiled, and "
                "what that computes cannot be converted. Remove it; "
                "torch.nn.utils.remove_weight_norm, remove_spectral_norm and prune.remove make a "
                "weight plain that a hook computes."
            )
        if keeps_states(module):
            raise ValueError(
                f"{_label(path, module)} keeps states from step to step. from_ann converts a "
                "network without neurons; tt.quantize.prepare takes spiking ones."
            )


class _Reader:
    """Make nodes of a traced program, one after another, and run them on the batch.

    Args:
        program: of the model.
        model: which it is of.
        activations: clip and levels of modules, by class.
    """

    def __init__(self, program: fx.GraphModule, model: nn.Module, activations: Activations) -> None:
        self.program, self.modules = program, dict(program.named_modules())
        self.paths = {id(module): path for path, module in named_modules(model)}
        self.activations = activations
        self.nodes: list[Node] = []
        self.tensors: list[Tensor] = []
        self.places: dict[fx.Node, int] = {}

    def read(self, x: Tensor) -> Graph:
        """Return the graph.

        Args:
            x: a batch.
        """
        inputs = [n for n in self.program.graph.nodes if n.op == "placeholder" and n.users]
        if len(inputs) != 1:
            raise ValueError(
                f"the model takes {len(inputs)} inputs, and a network of one can be converted."
            )
        for step in self.program.graph.nodes:
            if step.op == "placeholder":
                if step.users:
                    self.places[step] = self.add(Node("input", "input"), x)
            elif step.op == "output":
                (result,) = step.args
                if not isinstance(result, fx.Node) or result not in self.places:
                    raise ValueError("the model must return one tensor that it has computed.")
                return Graph(tuple(self.nodes), self.places[result])
            elif step.op == "get_attr":
                raise ValueError(
                    f"the model's forward uses {step.target!r} by itself, and parameters belong to "
                    "a layer; a ReLU of your own is declared by activations=. What can be "
                    f"converted: {_ALLOWED}."
                )
            elif step.op == "call_module":
                self.places[step] = self.call_module(step)
            elif not (step.target in _SIZES and self.is_size(step)):
                self.places[step] = self.call_function(step)
        raise ValueError("the model returns nothing.")

    def add(self, node: Node, tensor: Tensor) -> int:
        """Add a node with its value on the batch, and return its place."""
        self.nodes.append(node)
        self.tensors.append(tensor)
        return len(self.nodes) - 1

    def value(self, step: fx.Node, argument: Any) -> int:
        """Return the place of an argument, which must be a value of the network."""
        if not isinstance(argument, fx.Node) or argument not in self.places:
            raise ValueError(
                f"{self.title(step)} is given {argument!r}, which is no value of the network: "
                "neither its input nor what a module has made of it."
            )
        return self.places[argument]

    def title(self, step: fx.Node) -> str:
        """Return how messages name a step."""
        if step.op == "call_module":
            return _label(self.path(step), self.modules[str(step.target)])
        target = step.target
        return f"{target if isinstance(target, str) else target.__name__}() in the model's forward"

    def path(self, step: fx.Node) -> str:
        """Return the path of the module that a step calls, in the user's model."""
        return self.paths.get(id(self.modules[str(step.target)]), str(step.target))

    def is_size(self, step: fx.Node) -> bool:
        """Whether a step reads a size of a value, or a part of that."""
        source = step.args[0]
        if step.target is getattr:
            return step.args[1] in ("shape", "ndim")
        return step.target != operator.getitem or source not in self.places

    def refuse_overwriting(self, step: fx.Node) -> None:
        """Raise where a step writes in place into what another step reads too."""
        source = cast(fx.Node, step.args[0])
        if len(source.users) > 1:
            raise ValueError(
                f"{self.title(step)} writes into {source.name!r}, which is used again. Write it "
                "without inplace=True, y = y + x instead of y += x."
            )

    def call_module(self, step: fx.Node) -> int:
        """Read the call of a module, and return the place of its value."""
        module = self.modules[str(step.target)]
        kind = plain_class(module)
        title, name = self.title(step), self.path(step)
        if len(step.args) != 1 or step.kwargs:
            raise ValueError(f"{title} is called with more than one tensor.")
        place = self.value(step, step.args[0])
        if getattr(module, "inplace", False):
            self.refuse_overwriting(step)
        if kind in _NOTHING:
            return place
        activation = self.activation_of(module, title)
        if activation is not None:
            return self.activate(name, module, activation, place)
        if isinstance(module, BatchNormBase):
            return self.normalize(step, name, module, place)
        if kind in PRODUCTS or "parametrizations" in module._modules:
            return self.linear(name, self.plain(module, title), place)
        return self.pool(name, module, place, title)

    def pool(self, name: str, module: nn.Module, place: int, title: str) -> int:
        """Add a pool or a Flatten."""
        if type(module) in _MAXIMA and not getattr(module, "return_indices", False):
            node = Node(name, "max", (place,), module)
            return self.add(node, ann(node, [self.tensors[place]]))
        if type(module) in _POOLS or (isinstance(module, nn.Flatten) and module.start_dim):
            return self.linear(name, module, place)
        raise ValueError(f"{title} cannot be converted. What can be: {_ALLOWED}.")

    def linear(self, name: str, module: nn.Module, place: int) -> int:
        """Add a module that is linear, but for a bias."""
        node = Node(name, "linear", (place,), module)
        return self.add(node, ann(node, [self.tensors[place]]))

    def activate(self, name: str, module: nn.Module, activation: Activation, place: int) -> int:
        """Add an activation."""
        node = Node(name, "activation", (place,), module, activation)
        return self.add(node, ann(node, [self.tensors[place]]))

    def plain(self, module: nn.Module, title: str) -> nn.Module:
        """Return a copy of a product whose parameters are plain ones."""
        copied = copy.deepcopy(module)
        if "parametrizations" in copied._modules:
            # remove_parametrizations would change the class, which copies share
            names = list(cast(Any, copied.parametrizations))
            values = {name: getattr(module, name).detach().clone() for name in names}
            copied.__class__ = type(module).__bases__[0]
            del copied._modules["parametrizations"]
            for name, value in values.items():
                copied.register_parameter(name, nn.Parameter(value))
        if type(copied) not in PRODUCTS:
            raise ValueError(f"{title} cannot be converted. What can be: {_ALLOWED}.")
        return copied

    def normalize(self, step: fx.Node, name: str, norm: nn.Module, place: int) -> int:
        """Fold a batch norm into the product before it, or into one that it is itself."""
        affine = norm_affine(norm)
        if affine is None:
            raise ValueError(
                f"{self.title(step)} has no running statistics to fold. It needs "
                "track_running_stats=True."
            )
        source, x = cast(fx.Node, step.args[0]), self.tensors[place]
        before = self.nodes[place]
        # the product's own value, and not one that a dropout has passed on
        own = source.op == "call_module" and self.path(source) == before.name
        alone = own and len(source.users) == 1
        outputs_dim = -1 if isinstance(before.module, nn.Linear) else -x.ndim + 1
        if isinstance(before.module, PRODUCTS) and alone and outputs_dim % x.ndim == 1:
            scale_product(before.module, *affine)
        else:
            channels = x.shape[1]
            product: nn.Linear | nn.Conv2d
            if x.ndim == 2:
                product = nn.Linear(channels, channels, bias=False)
                weight = torch.eye(channels)
            else:
                convolution = cast(type[nn.Conv2d], _CONVOLUTIONS[x.ndim])
                product = convolution(channels, channels, 1, groups=channels, bias=False)
                weight = torch.ones_like(product.weight)
            product.to(x)
            product.weight.data.copy_(weight)
            scale_product(product, *affine)
            return self.linear(name, product, place)
        self.tensors[place] = ann(before, [self.tensors[before.inputs[0]]])
        return place

    def activation_of(self, module: nn.Module, title: str) -> Activation | None:
        """Return what kind of ReLU a module is; ``None`` where it is none."""
        kind = type(module)
        if kind in self.activations:
            found = _declared(self.activations[kind](module), title)
            _check_activation(module, found, title)
            return found
        if isinstance(module, QuantizedReLU):
            found = Activation(float(module.largest.detach()), module.levels)
            _check_activation(module, found, title)  # a subclass may compute something else
            return found
        if kind is nn.ReLU:
            return Activation()
        if kind in (nn.ReLU6, nn.Hardtanh):
            bounds = cast(nn.Hardtanh, module)
            if bounds.min_val != 0:
                raise ValueError(f"{title} must begin at 0, and rates are not negative.")
            return Activation(float(bounds.max_val))
        return None

    def call_function(self, step: fx.Node) -> int:
        """Read the call of a function or method, and return the place of its value."""
        target, args, kwargs = step.target, step.args, dict(step.kwargs)
        title = self.title(step)
        in_place = kwargs.pop("inplace", False) or str(target).endswith("_")
        if in_place or target in IN_PLACE or target in _OVERWRITING:
            self.refuse_overwriting(step)
        if target in _ADDING and len(args) == 2 and not kwargs:
            inputs = tuple(self.value(step, each) for each in args)
            one, other = (self.tensors[place] for place in inputs)
            if one.shape != other.shape:
                raise ValueError(
                    f"{title} adds values of the shapes {list(one.shape)} and {list(other.shape)}; "
                    "give both one shape."
                )
            return self.add(Node(step.name, "sum", inputs), one + other)
        if args and isinstance(args[0], tuple | list):  # torch.cat, torch.stack
            raise ValueError(f"{title} cannot be converted. What can be: {_ALLOWED}.")
        place = self.value(step, args[0] if args else None)
        if target in _DROPOUTS or target == "contiguous":
            return place
        if target in _RELUS and len(args) == 1:
            return self.activate(step.name, nn.ReLU(), Activation(), place)
        if target is F.relu6:
            return self.activate(step.name, nn.ReLU6(), Activation(6.0), place)
        if target in _CLAMPS or target is F.hardtanh:
            names = ("min_val", "max_val") if target is F.hardtanh else ("min", "max")
            given = dict(zip(names, args[1:], strict=False)) | kwargs
            low, high = (given.get(name) for name in names)
            if (
                low != 0
                or not isinstance(high, int | float | None)
                or (high is not None) > (high or 0)
            ):
                raise ValueError(f"{title} must clip at 0 and at a positive number or at none.")
            if high is None:
                return self.activate(step.name, nn.ReLU(), Activation(), place)
            return self.activate(step.name, nn.Hardtanh(0.0, high), Activation(float(high)), place)
        if target in ("view", "reshape", torch.reshape) and self.flattens(args[1:], place):
            return self.linear(step.name, nn.Flatten(), place)
        if target in ("mean", torch.mean):
            return self.mean(step, place)
        make = _FUNCTIONS.get(target)
        if make is not None and not any(isinstance(each, fx.Node) for each in args[1:]):
            options = {"start_dim": 0} if make is nn.Flatten and len(args) == 1 else {}
            arranged = dict(zip(_parameters(target), args[1:], strict=False))
            return self.pool(step.name, make(**{**options, **arranged, **kwargs}), place, title)
        raise ValueError(f"{title} cannot be converted. What can be: {_ALLOWED}.")

    def flattens(self, given: tuple[Any, ...], place: int) -> bool:
        """Whether a shape is ``[B, -1]``, or has the number of a sample's values there."""
        shape = given[0] if given and isinstance(given[0], tuple | list) else given
        size = self.tensors[place][0].numel()
        return len(shape) == 2 and (shape[1] == -1 or (shape[0] == -1 and shape[1] == size))

    def mean(self, step: fx.Node, place: int) -> int:
        """Read a mean over all places as a pool."""
        dims = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else None)
        keep = step.kwargs.get("keepdim", step.args[2] if len(step.args) > 2 else False)
        ndim = self.tensors[place].ndim
        given = dims if isinstance(dims, tuple | list) else (dims,)
        if dims is None or ndim < 3 or {cast(int, d) % ndim for d in given} != set(range(2, ndim)):
            raise ValueError(
                f"{self.title(step)} can be converted where it takes the mean of all places, "
                "dim=(2, 3) of an image."
            )
        pools = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
        place = self.linear(step.name, pools[ndim - 3](1), place)
        return place if keep else self.linear(f"{step.name}_flat", nn.Flatten(), place)


def _parameters(function: Any) -> tuple[str, ...]:
    """Return the arguments of a function behind its input, by the names of the module's."""
    if function in (torch.flatten, "flatten"):
        return ("start_dim", "end_dim")
    if function in (F.max_pool1d, F.max_pool2d, F.max_pool3d):
        return ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    if function in (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d):
        return ("output_size",)
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    return names if function is F.avg_pool1d else (*names, "divisor_override")


def _declared(returned: object, title: str) -> Activation:
    """Return the activation that a function of ``activations`` has returned."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(
            f"activations= must return (clip, levels) of {title}, got {type(returned).__name__}. "
            "Write None for a clip or levels that it does not have."
        )
    clip, levels = returned
    if isinstance(clip, Tensor):
        if clip.numel() != 1:
            raise ValueError(
                f"activations= returned {clip.numel()} clips for {title}. Rates of a layer have "
                "one clip: train it with one."
            )
        clip = float(clip.detach())
    return Activation(None if clip is None else float(clip), levels)


def _check_activation(module: nn.Module, found: Activation, title: str) -> None:
    """Compare a module of the user's with the ReLU that is declared."""
    reach = found.clip or 8.0
    if reach <= 0 or (found.levels is not None and (found.clip is None or found.levels < 1)):
        raise ValueError(
            f"{title} is declared with the clip {found.clip} and {found.levels} levels: a clip is "
            "positive, and levels are at least 1 and need a clip."
        )
    levels = found.levels or 8
    places = [reach * (k + part) / levels for k in range(-2, 2 * levels) for part in _PLACES]
    x = torch.tensor(places, dtype=torch.float64)
    wanted = x.clamp(0, found.clip)
    if found.levels is not None:
        wanted = torch.floor(wanted * levels / reach + 0.5) * (reach / levels)
    try:
        found_values = module(x.clone())
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{title} must compute a ReLU of each value alone, in any shape, and refused "
            f"{list(x.shape)}: {error}"
        ) from error
    if not torch.allclose(found_values, wanted, rtol=1e-6, atol=1e-6 * reach):
        raise ValueError(
            f"{title} does not compute a ReLU with the clip {found.clip} and {found.levels} "
            "levels, floor(levels * x / clip + 1/2) of them: declare what it computes."
        )
