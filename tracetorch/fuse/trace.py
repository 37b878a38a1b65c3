"""``trace``: a layer's ``step`` and its vector-Jacobian product as one :class:`Graph`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from tracetorch.fuse.graph import Builder, Graph, Ref, Unfusable
from tracetorch.fuse.lowering import lower
from tracetorch.snn.neuron import Neuron

_SIDE = 2  # of the small tensor that stands for the lanes while tracing


@dataclass(frozen=True)
class Program:
    """A step and its gradient, ready to be printed.

    Args:
        layer: the kind of layer it was traced from.
        states: the states it keeps; ``s_<name>`` going in, ``next_<name>`` coming out,
            ``g_<name>`` the cotangent of what comes out, ``d_s_<name>`` the gradient.
        params: its tensor arguments; ``p_<name>``, gradient ``d_p_<name>``.
        dtype: of the arithmetic.
        graph: everything; ``x`` goes in, ``output`` comes out, with cotangent ``g_output``.

    """

    layer: str
    states: tuple[str, ...]
    params: tuple[str, ...]
    dtype: torch.dtype
    graph: Graph

    @cached_property
    def key(self) -> str:
        """Equal for programs that compute the same."""
        text = f"{self.states}{self.params}{self.dtype}{self.graph}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def forward(self) -> Graph:
        """Output and next states."""
        return self.graph.select(["output", *(f"next_{name}" for name in self.states)])

    def backward(self, x: bool, params: Sequence[str]) -> Graph:
        """The gradients of the states, and those asked for of ``x`` and the parameters."""
        asked = ["d_x"] if x else []
        asked += [f"d_s_{name}" for name in self.states]
        return self.graph.select(asked + [f"d_p_{name}" for name in params])

    def recomputed(self, backward: Graph) -> tuple[str, ...]:
        """The states whose past values the backward pass reads, itself or to recompute others."""
        needed = {name for name in self.states if f"s_{name}" in backward.reads()}
        while True:
            reads = self.graph.select(f"next_{name}" for name in needed).reads()
            more = {name for name in self.states if f"s_{name}" in reads} - needed
            if not more:
                return tuple(name for name in self.states if name in needed)
            needed |= more


def trace(layer: Neuron, ndim: int, dtype: torch.dtype, arguments: dict[str, Any]) -> Program:
    """Run ``step`` once under ``make_fx``, with ``torch.autograd.grad`` inside.

    Args:
        layer: whose ``step``.
        ndim: number of dimensions of the tensor of one step.
        dtype: of the arithmetic.
        arguments: what ``layer.arguments`` gave; tensors become inputs, all else is compiled in.

    Raises:
        Unfusable: ``step`` does something that is not pointwise, or asks tensors for values.

    """
    kept = layer.kept_states
    params = tuple(name for name, value in arguments.items() if isinstance(value, Tensor))
    constants = {name: value for name, value in arguments.items() if name not in params}
    lanes = torch.full((_SIDE,) * ndim, 0.5, dtype=dtype)
    names = ["x", *(f"s_{n}" for n in kept), *(f"p_{n}" for n in params)]
    cotangents = ["g_output", *(f"g_{n}" for n in kept)]
    results = ["output", *(f"next_{n}" for n in kept), *(f"d_{n}" for n in names)]

    def run(tensors: list[Tensor], grads: list[Tensor]) -> list[Tensor | None]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        given = dict(zip(names, leaves, strict=True))
        with torch.enable_grad():
            states = [given.get(f"s_{name}") for name in layer.states]
            stepped = layer.step(
                given["x"], *states, **{n: given[f"p_{n}"] for n in params}, **constants
            )
            output, _, values = layer.check_result(given["x"], stepped)
        ends = [
            (end, g)
            for end, g in zip([output, *values], grads, strict=True)
            if end.requires_grad
        ]
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if ends:
            found = torch.autograd.grad(
                [end for end, _ in ends], leaves, [g for _, g in ends], allow_unused=True
            )
        return [output, *values, *found]

    module = _record(run, [[lanes.clone() for _ in names], [lanes.clone() for _ in cotangents]])
    graph = _to_graph(module, [*names, *cotangents], results, dtype, lanes.shape)
    return Program(type(layer).__name__, kept, params, dtype, graph)


def _record(run: Callable[..., Any], examples: list[list[Tensor]]) -> fx.GraphModule:
    try:
        with torch.random.fork_rng(devices=[]):
            module: fx.GraphModule = make_fx(run)(*examples)
            return module
    except Exception as failure:
        said = str(failure).strip().split("\n")[0]
        if "trying to get a value out of a tracing tensor" in said or (
            "Boolean value of Tensor" in said or "data-dependent" in said.lower()
        ):
            said = "it branches in Python on the values of tensors; write torch.where instead"
        raise Unfusable(f"its step cannot be traced: {said}") from failure


def _to_graph(
    module: fx.GraphModule,
    inputs: list[str],
    results: list[str],
    dtype: torch.dtype,
    shape: torch.Size,
) -> Graph:
    builder = Builder()
    values: dict[fx.Node, Ref] = {}
    names = iter(inputs)
    outputs: dict[str, Ref] = {}
    _drop_dead(module)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(names)
        elif node.op == "get_attr":
            values[node] = _literal(node, getattr(module, str(node.target)))
        elif node.op == "output":
            for name, end in zip(results, node.args[0], strict=True):
                outputs[name] = 0.0 if end is None else values[end]
        else:
            made = node.meta["val"]
            operation = str(node.target).removeprefix("aten.").split(".")[0]
            if not isinstance(made, Tensor) or (made.ndim and made.shape != shape):
                raise Unfusable(f"its step uses {node.target}, which is not pointwise")
            if made.dtype not in (dtype, torch.bool) and operation != "scalar_tensor":
                raise Unfusable(f"its step uses {node.target}, which makes {made.dtype} of {dtype}")
            try:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = lower(builder, operation, made.dtype == torch.bool, args, kwargs)
            except Unfusable as unknown:
                told = f" ({unknown})" if str(unknown) != operation else ""
                raise Unfusable(f"its step uses {node.target}{told}, which kernels lack") from None
    return Graph(tuple(builder.lines), outputs).select(results)


def _drop_dead(module: fx.GraphModule) -> None:
    """Dead code goes first: an unknown operation that nobody reads is no reason to refuse."""
    for node in reversed(list(module.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            if node.op == "call_function" and node.target._schema.is_mutable:
                continue
            module.graph.erase_node(node)


def _literal(node: fx.Node, value: object) -> Ref:
    """A number written in ``step`` as a tensor; a tensor from outside may change unseen."""
    written = all("lift_fresh" in str(user.target) for user in node.users)
    if not isinstance(value, Tensor) or value.numel() != 1 or not written:
        raise Unfusable(
            "its step reads a tensor that no decay, threshold, weight or option declares"
        )
    number = value.item()
    return number if isinstance(number, bool) else float(number) if math.isfinite(number) else number
