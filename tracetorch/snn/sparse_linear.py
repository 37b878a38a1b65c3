"""``SparseLinear``: a linear layer along a list of edges, as large as that and no larger.

Its lists by source are derived from ``edges`` and ``delay`` where they are needed, checked, and
kept until either is another tensor or was written to: no kernel reads what nobody has checked.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.cell import StateKind
from tracetorch.core.checks import (
    INTEGERS,
    check_count,
    check_each,
    check_flag,
    check_integer,
    check_integers,
    check_number,
)
from tracetorch.core.hooks import hooked_weights
from tracetorch.core.torch_private import is_readable, unsafe_view, version_of
from tracetorch.fuse.runtime.sparse_segments import Edges, sorted_by_source
from tracetorch.snn.connectivity import check_signs, check_values, connectivity, plain_class, signed
from tracetorch.snn.delay import PastLayer
from tracetorch.snn.passes import Restarts, weight_in_loop
from tracetorch.snn.sparse.product import EdgeWiring, product

_MOST = 2**31  # an index has 32 bits
_MOST_DENSE = 2**24  # values of a dense weight that is made


class _Parameter:
    """A name that a base class has for a method; an instance has a parameter of that name."""

    def __get__(self, layer: object, kind: type | None = None) -> Any:
        raise AttributeError("a parameter of each layer")


class SparseLinear(PastLayer):
    """Linear layer along a list of edges (sparse connectivity, a connectome): memory O(edges).

    ::

        output[t, o] = bias[o] + sum over edges e to o of  w[e] * x[t - delay[e], source[e]]
        w = weight,  weight[group],  signs * |weight|

    On the CPU time goes by events: an input that is 0 costs nothing, and adds nothing, even where
    its weight is infinite or NaN. Sums have one order, by time, source and place of the edge. On
    other devices, under ``torch.func``, forward mode and ``torch.compile`` operations of PyTorch's
    compute the same but for rounding, in memory O(rows * edges) where they record a graph.

    Edges between the same two neurons add up. ``edges`` and ``delay`` are sorted again when they
    are written to, but not by ``.data``, which nothing counts; loading checks them. In a
    :class:`Recurrent` delays come on top of the one step that this has itself.

    Args:
        in_features: size of the last dimension of the input, the number of sources.
        out_features: size of the last dimension of the output, the number of targets.
        edges: integers ``[2, E]``, sources in row 0 and targets in row 1, fewer than 2**31.
        weight: values ``[E]`` in the order of ``edges``, ``[groups]`` with ``group``, or one number
            for all; ``None``: uniform within one over the root of the number of edges to a target.
        bias: whether there is one; it starts as that of an ``nn.Linear``, 0 where no edge leads to.
        delay: whole steps, not negative: one number, or integers ``[E]``; ``None``: no delay.
        signs: 1 or -1 for each source, ``[in_features]``, or for each edge, ``[E]``: weights
            keep that sign (Dale's law), as those of :func:`connect`.
        group: integers ``[E]``, from 0 on: edges of a group share a weight.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``; with delays the state ``past``
        is ``[..., in_features, max_delay]``.

    Raises:
        TypeError: an argument or the input is of the wrong type.
        ValueError: an argument is out of range, an edge leads out of the layer, or the input has
            another number of features.

    Example:
        >>> edges = torch.tensor([[0, 1, 1], [2, 0, 2]])
        >>> layer = SparseLinear(2, 3, edges, weight=torch.tensor([1.0, 2.0, 3.0]), bias=False)
        >>> layer(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
        [[0.0, 0.0, 1.0], [2.0, 0.0, 4.0]]
    """

    _time = 0

    in_features: int
    out_features: int
    weight: nn.Parameter = cast(Any, _Parameter())  # type: ignore[assignment]
    bias: nn.Parameter | None
    edges: Tensor
    delay: Tensor | None
    signs: Tensor | None
    group: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        edges: Tensor,
        weight: Tensor | float | None = None,
        *,
        delay: Tensor | int | None = None,
        bias: bool = True,
        signs: Tensor | None = None,
        group: Tensor | None = None,
    ) -> None:
        sizes = check_count("in_features", in_features), check_count("out_features", out_features)
        if max(sizes) >= _MOST:
            raise ValueError(f"a layer has fewer than 2**31 features, got {max(sizes)}.")
        edges = _checked_edges(edges)
        super().__init__(sizes[0])
        self.in_features, self.out_features = sizes
        if is_readable(edges) and (problem := self._problem("edges", edges)) is not None:
            raise ValueError(f"edges lead out of the layer: {problem}.")
        if delay is not None:
            number = not isinstance(delay, Tensor)
            delay = torch.tensor(check_integer("delay", delay), device="cpu") if number else delay
            delay = check_values("delay", check_integers("delay", delay))
            check_each("delay", delay, edges.shape[1], "edge")
        if group is not None:
            group = check_values("group", check_integers("group", group))
            if group.shape != edges.shape[1:]:
                raise ValueError(
                    f"group must be [{edges.shape[1]}], the number of each edge's group, got shape "
                    f"{list(group.shape)}."
                )
        signs = None if signs is None else _checked_signs(signs, edges, sizes[0])
        largest = 0 if delay is None or not delay.numel() else int(delay.max())
        self._make_parameters(edges, weight, check_flag("bias", bias), group)
        self.option("max_delay", max(0, min(largest, _MOST - 1)), fixed=True)
        for name, values in (("delay", delay), ("group", group)):
            if (problem := self._problem(name, values)) is not None:
                raise ValueError(f"{problem}.")
        self._state_kind = StateKind(tail=(self.max_delay,), learned=self.max_delay > 0)
        device = self.weight.device
        buffers = {"edges": edges, "delay": delay, "signs": signs, "group": group}
        for name, values in buffers.items():
            kind = torch.int8 if name == "signs" else torch.int32
            # copies, of memory of their own
            kept = None if values is None else values.detach().to(device, kind, copy=True)
            self.register_buffer(name, kept)
        if signs is not None and group is None:  # mirrored, so that a weight is the one that acts
            with torch.no_grad():
                self.weight.copy_(self.edge_weight(self.weight.dtype))

    def _make_parameters(
        self, edges: Tensor, weight: Tensor | float | None, bias: bool, group: Tensor | None
    ) -> None:
        """Make weight and bias, as given or drawn."""
        count, targets = edges.shape[1], edges[1]
        degrees = _counts(targets, self.out_features)
        bounds = degrees.clamp(min=1).to(torch.get_default_dtype()).rsqrt_()
        if group is not None:
            given = isinstance(weight, Tensor) and weight.ndim == 1
            count = len(cast(Tensor, weight)) if given else int(group.max()) + 1 if count else 0
        if isinstance(weight, Tensor):
            if not weight.is_floating_point():
                raise TypeError(f"weight must be floats, got {weight.dtype}. Convert it: .float().")
            check_each("weight", weight, count, "edge or group")
            values = weight.detach().expand(count).clone(memory_format=torch.contiguous_format)
        elif weight is not None:
            values = torch.full((count,), check_number("weight", weight))
        else:
            values = torch.empty(count).uniform_(-1, 1)
            if group is None:
                scale = bounds.index_select(0, targets)
            else:  # of the groups, one for all: that of the mean number of edges
                scale = bounds.new_full((count,), _mean_bound(degrees))
            values.mul_(scale.to(values.device))
        self.register_parameter("weight", nn.Parameter(values))
        start = None
        if bias:
            start = torch.empty(self.out_features).uniform_(-1, 1).to(values.device, values.dtype)
            start.mul_(torch.where(degrees > 0, bounds, 0.0).to(start.device))
        self.register_parameter("bias", None if start is None else nn.Parameter(start))

    @classmethod
    def from_matrix(cls, matrix: Any, **options: Any) -> SparseLinear:
        """Make a layer of a sparse matrix ``[out, in]``, which is shaped as ``nn.Linear.weight``.

        Args:
            matrix: of PyTorch (coo, csr or csc), or of SciPy. Each entry becomes an edge, in their
                order, also a zero that is stored and those that are there twice.
            **options: ``bias``, ``delay``, ``signs`` of the constructor.

        Raises:
            TypeError, ValueError: it is no sparse matrix, an option is one that it says itself.

        Example:
            >>> matrix = torch.tensor([[0.0, 2.0], [3.0, 0.0]]).to_sparse()
            >>> layer = SparseLinear.from_matrix(matrix, bias=False)
            >>> layer.edges.tolist(), layer.weight.tolist()
            ([[1, 0], [0, 1]], [2.0, 3.0])
        """
        for name in {"edges", "weight", "group"} & {*options}:
            raise TypeError(f"{name} follows from what the layer is made of: leave it out.")
        if isinstance(matrix, Tensor):
            if matrix.layout not in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
                raise TypeError(
                    f"matrix must be sparse, coo, csr or csc, got {matrix.layout}. Try "
                    "matrix.to_sparse(), or SparseLinear.from_linear."
                )
            matrix = cast(Any, matrix.detach()).to_sparse_coo()
            edges, weight = matrix._indices().flip(0), matrix._values()
        elif hasattr(matrix, "tocoo"):
            matrix = matrix.tocoo()
            if matrix.data.dtype.kind not in "iufb":
                raise TypeError(f"weights must be numbers, got {matrix.data.dtype}.")
            edges = torch.from_numpy(np.stack([matrix.col, matrix.row]))
            # NumPy's default dtype is float64, whatever is meant
            weight = torch.from_numpy(matrix.data.astype("float64")).to(torch.get_default_dtype())
        else:
            raise TypeError(
                "matrix must be a sparse tensor of PyTorch, or a sparse matrix of SciPy, got "
                f"{type(matrix).__name__}."
            )
        shape = list(matrix.shape)
        if len(shape) != 2 or weight.ndim != 1:
            raise ValueError(f"matrix must be [out_features, in_features], got shape {shape}.")
        if not weight.is_floating_point():
            weight = weight.to(torch.get_default_dtype())
        return cls(shape[1], shape[0], edges, weight, **options)

    @classmethod
    def from_linear(cls, linear: nn.Module, *, delay: Tensor | int | None = None) -> SparseLinear:
        """Make a layer of an ``nn.Linear``: of the mask of :func:`connect`, or of what is not 0.

        Args:
            linear: the layer, whose signs and bias are copied.
            delay: as that of the constructor.

        Raises:
            TypeError: it is no ``nn.Linear``.

        Example:
            >>> linear = connect(nn.Linear(4, 3), mask=torch.eye(3, 4) > 0)
            >>> SparseLinear.from_linear(linear).edges.tolist()
            [[0, 1, 2], [0, 1, 2]]
        """
        if plain_class(linear) is not nn.Linear:
            raise TypeError(
                f"from_linear takes an nn.Linear, plain or connected, got {type(linear).__name__}."
            )
        weight, rule = cast(Tensor, linear.weight).detach(), connectivity(linear)
        mask = weight != 0 if rule is None or rule.mask is None else rule.mask
        edges = mask.t().nonzero().t()
        signs = None
        if rule is not None and rule.signs is not None:  # of each edge, however many there are
            signs = rule.signs.flatten()[edges[0]].unsqueeze(0)
        given = *weight.shape[::-1], edges, weight[edges[1], edges[0]]
        layer = cls(*given, delay=delay, bias=linear.bias is not None, signs=signs)
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(cast(Tensor, linear.bias))
        return layer

    # What there is

    @property
    def active_states(self) -> tuple[str, ...]:
        """``past``, where there are delays."""
        return self.states if self.max_delay else ()

    @property
    def plan(self) -> Edges:
        """The edges by source; ``ValueError``: what was written to them leads out of the layer."""
        edges, delay = self.edges, self.delay
        versions = version_of(edges), 0 if delay is None else version_of(delay)
        key = (*versions, self.in_features, self.out_features)
        known = self.__dict__.get("_known_plan")
        if (
            known is None
            or None in versions  # nobody counts what is written to tensors of inference mode
            or (known[0] is not edges or known[1] is not delay or known[2] != key)
        ):
            problem = self._problem("edges", edges) or self._problem("delay", delay)
            if delay is not None and delay.ndim and delay.shape != edges.shape[1:]:
                problem = f"{edges.shape[1]} edges have delays of shape {list(delay.shape)}"
            if problem is not None:
                raise ValueError(f"{self._label()} cannot run: {problem}.")
            known = edges, delay, key, sorted_by_source(edges, delay, self.in_features)
            self.__dict__["_known_plan"] = known
        plan: Edges = known[3]
        return plan

    @property
    def computes_as_its_class(self) -> bool:
        """Whether a step is certain to be a sum along edges of the last inputs."""
        return (
            plain_class(self) is SparseLinear
            and _code_of(SparseLinear) == _CODE
            and vars(self).keys().isdisjoint(_OWN)
            and not hooked_weights(self)
        )

    def edge_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight of every edge ``[E]`` as it acts, in a dtype or its own."""
        weight: Tensor | None = self._parameters.get("weight")
        if weight is None:  # a parametrization
            weight = self.weight
        if dtype is not None:
            weight = weight.to(dtype)
        if self.group is not None:
            weight = weight.index_select(0, self.group)
        if self.signs is not None:
            weight = signed(weight, self.signs)
        return weight

    def default_rms(self) -> float:
        """Return the root mean square of the weights that the constructor draws."""
        degrees = _counts(self.edges[1], self.out_features)
        return _mean_bound(degrees) / math.sqrt(3)

    def dense_weight(self) -> Tensor:
        """Return the weight of the ``nn.Linear`` that computes the same, ``[out, in]``.

        Raises:
            ValueError: there are delays, or more than 2**24 values.

        Example:
            >>> SparseLinear(2, 1, torch.tensor([[1, 1], [0, 0]]), weight=0.5).dense_weight()
            tensor([[0., 1.]], grad_fn=<IndexPutBackward0>)
        """
        if self.max_delay:
            raise ValueError("an nn.Linear has no delays: put snn.Delay before one.")
        size = self.in_features * self.out_features
        if size > _MOST_DENSE:
            raise ValueError(
                f"its dense weight would have {size} values, and more than {_MOST_DENSE} are not "
                "made. Keep the edges and their weights."
            )
        weight = self.edge_weight()
        dense = weight.new_zeros(self.out_features, self.in_features)
        return dense.index_put((*self.edges.long().flip(0),), weight, accumulate=True)

    # Running

    def _check_states_current(self) -> None:
        """Raise where a step would run on states of another trace; without states on none."""
        if self.max_delay:
            super()._check_states_current()

    def _check_features(self, x: Tensor, sequence: bool) -> None:
        """Raise where an input does not have the features of the layer."""
        if x.ndim > sequence and x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self._label()} takes {self.in_features} features in the last dimension, the "
                f"input has {x.shape[-1]}, shape {list(x.shape)}."
            )
        super()._check_features(x, sequence)

    def _restarted(
        self, x: Tensor, record: tuple[str, ...], reset: Restarts, further: tuple[Tensor, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run a sequence in which samples start anew; without a state nothing does."""
        if self.active_states:
            return super()._restarted(x, record, reset, further)
        return self.forward_sequence(x, record)

    def _run(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if hooked_weights(self):
            raise ValueError(
                f"{self._label()} has a pruned weight, or a norm of torch.nn.utils. Leave edges "
                "out of edges=, or use torch.nn.utils.parametrize on weight."
            )
        window, steps = x.to(dtype), len(x)
        if self.max_delay:
            past = cast(Tensor, self._states_for(x, dtype, sequence=True)[0])
            window = torch.cat([past.movedim(-1, 0), window])
        delay, reach, rows = self.delay, self.max_delay, window
        if delay is None or not delay.ndim:  # rows alike, those of steps and those of samples
            delay, reach, rows = None, 0, window[:steps]
        sizes = self.in_features, self.out_features
        # checked now, and not held by the graph as a method would be, with the layer
        has_plan = self.edges.is_cpu and is_readable(self.edges)
        wiring = EdgeWiring(self.edges, delay, reach, *sizes, self.plan if has_plan else None)
        if reach and rows.ndim > 2:
            rows = rows.flatten(1, -2)
        else:
            rows = (rows if reach else rows.flatten(0, -2)).unsqueeze(1)
        weight = weight_in_loop(self, self.edge_weight, dtype)
        if weight.shape != self.edges.shape[1:]:
            raise ValueError(
                f"{self._label()} has {self.edges.shape[1]} edges, and weights for them of shape "
                f"{list(weight.shape)}. Assign one for each, or build another layer."
            )
        y = product(wiring, rows, weight)
        shape = (*x.shape[:-1], self.out_features)
        # no view, which FSDP would lose the gradient of, if it were changed in place
        y = unsafe_view(y, shape) if has_plan else y.view(shape)
        bias = self.bias
        return (y if bias is None else y + bias.to(dtype)), window

    # Keeping

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in super().__getstate__().items() if name != "_known_plan"}

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, *arguments: Any
    ) -> None:
        for name in ("edges", "delay", "signs", "group"):
            problem = self._loaded_problem(name, state_dict.get(f"{prefix}{name}"))
            if problem is not None:  # nothing of the layer is loaded
                arguments[-1].append(f"{prefix.rstrip('.') or type(self).__name__}: {problem}.")
                return
        super()._load_from_state_dict(state_dict, prefix, metadata, *arguments)

    def _loaded_problem(self, name: str, loaded: object) -> str | None:
        """Return why what is to be loaded cannot be, where PyTorch would not say so."""
        own = self._buffers[name]
        if own is None and loaded is not None:
            return f"the file has {name}, and the layer was built without"
        if not isinstance(loaded, Tensor) or own is None or loaded.is_meta:
            return None
        if loaded.dtype not in INTEGERS:
            return f"{name} must be integers, got {loaded.dtype}"
        # PyTorch says so where the shape is another one
        return self._problem(name, loaded) if loaded.shape == own.shape else None

    def _problem(self, name: str, values: Tensor | None) -> str | None:
        """Return what is wrong with the values of a buffer, or ``None``."""
        if values is None or values.numel() == 0:
            return None
        if name == "edges":
            sizes = ("source", self.in_features), ("target", self.out_features)
            for row, (end, size) in zip(values, sizes, strict=True):
                if (bad := _outside(row, size - 1)) is not None:
                    edge = int((row == bad).nonzero()[0])
                    return f"edge {edge} has the {end} {bad}, and there are {size}, 0 to {size - 1}"
            return None
        if name == "signs":
            wrong = bool((values.abs() != 1).any())
            return "signs must be 1 (excitatory) or -1 (inhibitory)" if wrong else None
        most = self.max_delay if name == "delay" else len(self.weight) - 1
        if name == "delay" and values.ndim == 0 and 0 <= int(values) != most:
            return f"it was built with delay={most}, and has {int(values)} now. Build another layer"
        bad = _outside(values, most)
        return None if bad is None else f"{name} must be whole numbers, 0 to {most}, got {bad}"


# what a step calls, and a user may have set on a layer or patched in the class
_OWN = ("forward_step", "_run", "_finish", "edge_weight", "_check_input", "_states_for")
_code_of = operator.attrgetter(*_OWN)
_CODE = _code_of(SparseLinear)


def _checked_edges(edges: object) -> Tensor:
    """Return edges ``[2, E]``."""
    checked = check_integers("edges", edges)
    if checked.ndim != 2 or len(checked) != 2:
        transposed = checked.ndim == 2 and checked.shape[1] == 2
        hint = " Transpose them: edges.t()." if transposed else ""
        raise ValueError(
            "edges must be [2, E], sources in row 0 and targets in row 1, got shape "
            f"{list(checked.shape)}.{hint}"
        )
    if checked.shape[1] >= _MOST:
        raise ValueError(
            f"a layer has fewer than 2**31 edges, got {checked.shape[1]}. Split them, by target "
            "say, over several layers."
        )
    return checked


def _outside(values: Tensor, most: int) -> int | None:
    """Return a value that is not 0 to ``most``, if there is one."""
    low, high = (int(found) for found in torch.aminmax(values))
    return low if low < 0 else high if high > most else None


def _counts(targets: Tensor, outputs: int) -> Tensor:
    """Return the number of edges to each target; without values none is known."""
    if targets.is_meta:
        return targets.new_zeros(outputs)
    return torch.bincount(targets, minlength=outputs)


def _mean_bound(degrees: Tensor) -> float:
    """Return the root mean square, over edges, of one over the root of the edges to its target."""
    return math.sqrt(int((degrees > 0).sum()) / max(1, int(degrees.sum())))


def _checked_signs(signs: object, edges: Tensor, inputs: int) -> Tensor:
    """Return a sign for each edge."""
    signs, count = check_signs(signs), edges.shape[1]
    if tuple(signs.shape) not in ((inputs,), (count,), (1, count)):
        raise ValueError(
            f"signs must have one value for each source, [{inputs}], or for each edge, [{count}], "
            f"got {list(signs.shape)}."
        )
    if signs.ndim == 2:
        return signs[0]
    if edges.is_meta:
        raise ValueError("edges have no values on the meta device: give signs of edges, [1, E].")
    by_source = signs if len(signs) == count != inputs else signs[edges[0]]
    if count == inputs and not torch.equal(by_source, signs):
        raise ValueError(
            f"there are as many edges as sources, {count}, so that it is not known whose signs "
            "these are. Give those of edges as [1, E]: signs[edges[0]][None] for those of sources."
        )
    return by_source
