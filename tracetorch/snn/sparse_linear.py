"""``SparseLinear``: a linear layer along a list of edges, as large as that and no larger.

Its lists by source are derived from ``edges`` and ``delay`` where they are needed, checked, and
kept until either is another tensor or was written to: so they need no place in a ``state_dict``,
follow ``.to()``, and no kernel reads an index that nobody has checked.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, cast

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
from tracetorch.fuse.runtime.sparse_segments import Edges
from tracetorch.snn.connectivity import check_signs, plain_class
from tracetorch.snn.delay.base import PastLayer
from tracetorch.snn.passes import weight_in_loop
from tracetorch.snn.restarts import Restarts
from tracetorch.snn.sparse import sources
from tracetorch.snn.sparse.edge_plan import EdgePlan, check_range, edges_by_chunk, sorted_by_source
from tracetorch.snn.sparse.product import Wiring, product

_MOST = 2**31  # an index has 32 bits
_MOST_DENSE = 2**24  # values of a dense weight that is made
_SIGNS = "signs must be 1 (excitatory) or -1 (inhibitory)"


class _Parameter:
    """A name that a base class has for a method; an instance has a parameter of that name."""

    def __get__(self, layer: object, kind: type | None = None) -> Any:
        raise AttributeError("a parameter of each layer")


class SparseLinear(PastLayer):
    """Linear layer along a list of edges (sparse connectivity, a connectome): memory O(edges).

    ::

        output[t, o] = bias[o] + sum over edges e to o of  w[e] * x[t - delay[e], source[e]]
        w = weight,  weight[group],  signs * |weight|

    Nothing is ever as large as inputs times outputs: a weight takes 4 bytes, an edge 8, and the
    lists by which products find the edges of a source 8 more, 4 more each with delays, groups, and
    1 with signs. On the CPU time goes by events: an input that is 0 costs nothing, and adds
    nothing, even where its weight is infinite or NaN, and the gradient of a weight is computed
    where its source is not 0. The gradient of the input visits every edge, 16 rows at once, and is
    left out where nobody wants it; in a :class:`Recurrent` along the edges it visits fewer. Sums
    have one order, by time, source and place of the edge, so results are the same for any number of
    threads. On other devices, under ``torch.func``, forward
    mode and ``torch.compile`` operations of PyTorch's compute the same but for rounding, in memory
    O(rows * edges) where they record a graph. Derivatives of any order are there.

    Edges sorted by source, as the builders (:func:`random_edges` and others) give them, are fastest
    to read. Edges between the same two neurons add up; a neuron may have an edge to itself, or none
    at all. ``weight`` is read at every call; ``edges`` and ``delay`` are sorted when they are met,
    and again when they are written to, but not where that is by ``.data``, which nothing counts.

    With delays the layer keeps the inputs of the last steps, in its state ``past``: in a pass by
    layer all steps are one product. As the connection of a :class:`Recurrent` the delays come on
    top of the one step that this has itself.

    Signs (Dale's law): the weights of excitatory sources are at least 0, those of inhibitory at
    most 0, as those of :func:`connect`: the derivative by ``weight`` is 1 or -1 at zero too.
    Groups: edges of a kind share a weight, which is then as long as there are groups.

    ``state_dict`` has the edges beside the weights, so that a file is complete; loading checks
    them. The layer has no dense form inside: :meth:`dense_weight` makes one, of small layers.

    Args:
        in_features: size of the last dimension of the input, the number of sources.
        out_features: size of the last dimension of the output, the number of targets.
        edges: integers ``[2, E]``, sources in row 0 and targets in row 1, fewer than 2**31.
        weight: values ``[E]`` in the order of ``edges``, ``[groups]`` with ``group``, or one number
            for all; ``None`` draws them as ``nn.Linear`` does: uniformly within one over the square
            root of the number of edges to the target.
        bias: whether there is one; it starts as that of an ``nn.Linear``, 0 where no edge leads to.
        delay: whole steps, not negative: one number, or integers ``[E]``; ``None``: no delay.
        signs: 1 or -1 for each source, ``[in_features]``, or for each edge, ``[E]``.
        group: integers ``[E]``, the number of each edge's group, from 0 on.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``; with delays the state ``past``
        is ``[..., in_features, max_delay]``.

    Raises:
        TypeError: an argument or the input is of the wrong type.
        ValueError: an argument is out of range, an edge leads out of the layer, there are 2**31
            edges or more, or the input has another number of features.

    Example:
        >>> edges = torch.tensor([[0, 1, 1], [2, 0, 2]])
        >>> layer = SparseLinear(2, 3, edges, weight=torch.tensor([1.0, 2.0, 3.0]), bias=False)
        >>> layer(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
        [[0.0, 0.0, 1.0], [2.0, 0.0, 4.0]]
        >>> layer = SparseLinear(2, 3, edges, weight=1.0, bias=False, delay=torch.tensor([0, 1, 2]))
        >>> [layer(torch.tensor([x])).tolist()[0] for x in ([1.0, 1.0], [0.0, 0.0], [0.0, 0.0])]
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
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
        edges = _checked_edges(edges, *sizes)
        super().__init__(sizes[0])
        self.in_features, self.out_features = sizes
        delays, largest = _checked_delay(delay, edges)
        group = None if group is None else _checked_group(group, edges)
        signs = None if signs is None else _checked_signs(signs, edges, sizes[0])
        self._make_parameters(edges, weight, check_flag("bias", bias), group)
        self.option("max_delay", largest, fixed=True)
        self._state_kind = StateKind(tail=(largest,), learned=largest > 0)
        device = self.weight.device
        buffers = {"edges": edges, "delay": delays, "signs": signs, "group": group}
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
            if problem := _group_problem(group, count):
                raise ValueError(f"{problem}.")
        if isinstance(weight, Tensor):
            values = _checked_weight(weight, count)
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
            matrix: of PyTorch (``torch.sparse_coo``, ``sparse_csr``, ``sparse_csc``), or of SciPy.
                Edges and weights are in the order of its entries: one by columns is read fastest.
                Entries that are there twice stay two edges, and zeros that are stored stay edges.
            **options: ``bias``, ``delay``, ``signs`` of the constructor.

        Raises:
            TypeError: it is no sparse matrix, or an option is one that it says itself.
            ValueError: it is no matrix, or as the constructor.

        Example:
            >>> matrix = torch.tensor([[0.0, 2.0], [3.0, 0.0]]).to_sparse()
            >>> layer = SparseLinear.from_matrix(matrix, bias=False)
            >>> layer.edges.tolist(), layer.weight.tolist()
            ([[1, 0], [0, 1]], [2.0, 3.0])
        """
        named = sources.options_without(options, "edges", "weight", "group")
        return cls(*sources.from_matrix(matrix), **named)

    @classmethod
    def from_linear(cls, linear: nn.Module, *, delay: Tensor | int | None = None) -> SparseLinear:
        """Make a layer of an ``nn.Linear``: of the mask of :func:`connect`, or of what is not 0.

        Its signs and its bias are kept, as copies. Edges are sorted by source.

        Args:
            linear: the layer, which stays as it is.
            delay: as that of the constructor.

        Raises:
            TypeError: it is no ``nn.Linear``.

        Example:
            >>> linear = connect(nn.Linear(4, 3), mask=torch.eye(3, 4) > 0)
            >>> SparseLinear.from_linear(linear).edges.tolist()
            [[0, 1, 2], [0, 1, 2]]
        """
        given, signs = sources.from_linear(linear)
        bias = cast(nn.Linear, linear).bias
        if signs is not None:  # of each edge, which is the same however many there are
            signs = signs[given.edges[0]].unsqueeze(0)
        layer = cls(*given, delay=delay, bias=bias is not None, signs=signs)
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(bias)
        return layer

    # What there is

    @property
    def active_states(self) -> tuple[str, ...]:
        """``past``, where there are delays."""
        return self.states if self.max_delay else ()

    @property
    def plan(self) -> EdgePlan:
        """The edges sorted by source and checked, as a product by events reads them.

        Raises:
            ValueError: what was written to ``edges`` or ``delay`` leads out of the layer.
        """
        edges, delay = self.edges, self.delay
        sizes = self.in_features, self.out_features
        versions = version_of(edges), None if delay is None else version_of(delay)
        key = (edges, delay, *versions, *sizes)
        known = self.__dict__.get("_known_plan")
        # nobody counts what is written to tensors of inference mode
        unknown = versions[0] is None or (delay is not None and versions[1] is None)
        if known is None or unknown or not all(map(_is_same, known[0], key)):
            problem = check_range(edges, *sizes) or _delay_problem(delay, self.max_delay)
            delays = delay if delay is not None and delay.ndim else None
            if delays is not None and delays.shape != edges.shape[1:]:
                problem = f"{edges.shape[1]} edges have delays of shape {list(delays.shape)}"
            if problem is not None:
                raise ValueError(f"{self._label()} cannot run: {problem}.")
            known = key, sorted_by_source(edges, delays, self.in_features)
            self.__dict__["_known_plan"] = known
        plan: EdgePlan = known[1]
        return plan

    def edges_by_chunk(self, chunks: tuple[int, int]) -> Edges:
        """Return the edges sorted by source and then by chunk of targets, as a loop reads them."""
        plan, known = self.plan, self.__dict__.get("_known_edges")
        if known is None or known[0] is not plan or known[1] != chunks:
            known = plan, chunks, edges_by_chunk(plan, self.delay, chunks)
            self.__dict__["_known_edges"] = known
        edges: Edges = known[2]
        return edges

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
        """Return the weight of every edge ``[E]``, as it acts: of its group, with its sign.

        Args:
            dtype: of the arithmetic; that of ``weight`` if ``None``.
        """
        weight: Tensor | None = self._parameters.get("weight")
        if weight is None:  # a parametrization
            weight = self.weight
        if dtype is not None:
            weight = weight.to(dtype)
        if self.group is not None:
            weight = weight.index_select(0, self.group)
        if self.signs is not None:
            signs = self.signs.to(weight.dtype)
            # signs * |weight|, whose derivative is 1 or -1 at zero too
            weight = weight * torch.where(weight < 0, -signs, signs)
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
            tensor([[0., 1.]], grad_fn=<ViewBackward0>)
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
        sources, targets = self.edges.long()
        places = targets * self.in_features + sources
        dense = weight.new_zeros(size).index_add(0, places, weight)
        return dense.view(self.out_features, self.in_features)

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
        delay, reach, rows = self.delay, 0, window[:steps]
        if delay is not None and delay.ndim:
            reach, rows = self.max_delay, window
        else:  # rows alike, those of steps and those of samples
            delay = None
        sizes = self.in_features, self.out_features
        # checked now, and not held by the graph as a method would be, with the layer
        has_plan = self.edges.is_cpu and is_readable(self.edges)
        wiring = Wiring(self.edges, delay, reach, *sizes, self.plan if has_plan else None)
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
        return {name: v for name, v in super().__getstate__().items() if name not in _KNOWN}

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, *arguments: Any
    ) -> None:
        problem = self._loaded_problem(state_dict, prefix)
        if problem is not None:  # nothing of the layer is loaded
            arguments[-1].append(f"{prefix.rstrip('.') or type(self).__name__}: {problem}.")
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, *arguments)

    def _loaded_problem(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        """Return why what is to be loaded cannot be, where PyTorch would not say so."""
        for name in ("edges", "delay", "signs", "group"):
            own, loaded = self._buffers[name], state_dict.get(f"{prefix}{name}")
            if own is None and loaded is not None:
                return f"the file has {name}, and the layer was built without"
            if not isinstance(loaded, Tensor) or own is None or loaded.is_meta:
                continue
            if loaded.dtype not in INTEGERS:
                return f"{name} must be integers, got {loaded.dtype}"
            if loaded.shape != own.shape:
                continue  # PyTorch says so
            if name == "edges":
                problem = check_range(loaded, self.in_features, self.out_features)
            elif name == "delay":
                problem = _delay_problem(loaded, self.max_delay)
            elif name == "signs":
                problem = _SIGNS if bool((loaded.abs() != 1).any()) else None
            else:
                problem = _group_problem(loaded, len(self.weight))
            if problem is not None:
                return problem
        return None


_KNOWN = frozenset({"_known_plan", "_known_edges"})  # derived, in no copy
# what a step calls, and a user may have set on a layer or patched in the class
_OWN = ("forward_step", "_run", "_finish", "edge_weight", "_check_input", "_states_for")
_code_of = operator.attrgetter(*_OWN)
_CODE = _code_of(SparseLinear)


def _checked_integers(name: str, values: object) -> Tensor:
    checked = check_integers(name, values)
    if checked.is_meta:
        raise ValueError(f"{name} has no values on the meta device. Give it on the CPU.")
    return checked


def _checked_edges(edges: object, inputs: int, outputs: int) -> Tensor:
    """Return edges ``[2, E]`` that are in range."""
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
    if is_readable(checked) and (problem := check_range(checked, inputs, outputs)) is not None:
        raise ValueError(f"edges lead out of the layer: {problem}.")
    return checked


def _checked_weight(weight: Tensor, count: int) -> Tensor:
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floats, got {weight.dtype}. Convert it by .float().")
    check_each("weight", weight, count, "edge or group")
    return weight.detach().expand(count).clone(memory_format=torch.contiguous_format)


def _is_same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, int) and one == other)


def _counts(targets: Tensor, outputs: int) -> Tensor:
    """Return the number of edges to each target; without values none is known."""
    if targets.is_meta:
        return targets.new_zeros(outputs)
    return torch.bincount(targets, minlength=outputs)


def _mean_bound(degrees: Tensor) -> float:
    """Return the root mean square, over edges, of one over the root of the edges to its target."""
    return math.sqrt(int((degrees > 0).sum()) / max(1, int(degrees.sum())))


def _checked_delay(delay: object, edges: Tensor) -> tuple[Tensor | None, int]:
    """Return delays as integers, ``[]`` or ``[E]``, and the largest."""
    if delay is None:
        return None, 0
    if not isinstance(delay, Tensor):
        delay = torch.tensor(check_integer("delay", delay), device="cpu")
    checked = _checked_integers("delay", delay)
    check_each("delay", checked, edges.shape[1], "edge")
    if checked.numel() == 0:
        return checked, 0
    least, largest = (int(found) for found in torch.aminmax(checked))
    if least < 0 or largest >= _MOST:
        raise ValueError(
            f"delay must be whole steps, from 0 on, got {least if least < 0 else largest}."
        )
    return checked, largest


def _delay_problem(delay: Tensor | None, largest: int) -> str | None:
    """Return what is wrong with delays of a layer that was built for a largest one, or ``None``."""
    if delay is None or delay.numel() == 0:
        return None
    low, high = (int(found) for found in torch.aminmax(delay))
    if delay.ndim == 0 and high != largest:
        return f"it was built with delay={largest}, and has {high} now. Build another layer"
    if low < 0 or high > largest:
        bad = low if low < 0 else high
        return (
            f"its delays lie between 0 and {largest}, the largest that it was built with, got {bad}"
        )
    return None


def _checked_group(group: object, edges: Tensor) -> Tensor:
    checked = _checked_integers("group", group)
    if checked.shape != edges.shape[1:]:
        raise ValueError(
            f"group must be [{edges.shape[1]}], the number of each edge's group, got shape "
            f"{list(checked.shape)}."
        )
    return checked


def _group_problem(group: Tensor, count: int) -> str | None:
    if group.numel() == 0:
        return None
    low, high = (int(found) for found in torch.aminmax(group))
    if low >= 0 and high < count:
        return None
    return f"group must be 0 to {count - 1}, one below the number of weights, got {low} to {high}"


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
