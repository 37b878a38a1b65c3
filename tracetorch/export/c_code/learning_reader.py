"""Read the divided tape of a learner's step as stages: products of what changes, and phases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from tracetorch.export.c_code.operations import RULES
from tracetorch.export.c_code.phases import is_outer, phase_of
from tracetorch.export.c_code.reader import Reader, Rule, operation_of, path_of, refused
from tracetorch.export.c_code.stages import Contraction, Phase, View
from tracetorch.fuse.ir.graph import Builder, Value


class LearningReader(Reader):
    """Reader of a divided graph, each of whose stages is of a phase."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, (), LEARNING_RULES)
        self.phase = Phase.STEP
        self._read = 0  # number of stages whose phase is known

    def run_node(self, n: Node) -> Any:
        """Run an operation, and read it; what comes in another phase is no part of this loop."""
        phase = phase_of(n)
        if phase is not None and phase is not self.phase:
            self.finish()
            self.phase = phase
        return super().run_node(n)

    def finish(self) -> None:
        """Close the open group, and give the stages so far their phase."""
        self.close()
        new = [replace(each, phase=self.phase) for each in self.stages[self._read :]]
        self.stages[self._read :] = new
        self._read = len(self.stages)


def _matrices(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a product of matrices: of weights that are constant, or of two that change."""
    *first, left, right = node.args[:3]
    name = operation_of(node)
    chosen = [*first, right]
    if name != "bmm" and all(isinstance(n, Node) and n.name in reader.constants for n in chosen):
        RULES[name](reader, node, made)
        return
    if node.kwargs or (name == "bmm" and made.shape[0] != 1 and not is_outer(node)):
        raise refused(node, "it sums over several rows of one step, or has a factor")
    if is_outer(node):

        def emit(operand: Callable[[Any], Value], builder: Builder) -> Value:
            product = builder.emit("mul", operand(left), operand(right))
            return builder.emit("add", operand(first[0]), product) if first else product

        reader.emitted(node, made, emit)
        return
    target = reader.new(node, made.contiguous())
    views = [reader.view(each) for each in (left, right)]  # type: ignore[arg-type]
    start = reader.view(first[0]).broadcast(tuple(made.shape)) if first else None  # type: ignore[arg-type]
    source, factor, into = (_matrix(each) for each in (*views, target))
    begin = None if start is None else _matrix(start)
    reader.append(node, Contraction(path_of(node), source, factor, into, begin), target)


def _matrix(view: View) -> View:
    """Return a view without the one batch that ``bmm`` has."""
    return replace(view, shape=view.shape[-2:], strides=view.strides[-2:])


def _summed(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a sum, or nothing where each is of one term."""
    given: Any = node.args[0]
    if reader.env[given].numel() != made.numel():
        RULES["sum"](reader, node, made)
        return
    view = reader.view(given).squeezed()
    sizes = iter(zip(view.shape, view.strides, strict=True))
    pairs = [next(sizes) if size != 1 else (1, 0) for size in made.shape]
    reader.views[node.name] = replace(
        view, shape=tuple(p[0] for p in pairs), strides=tuple(p[1] for p in pairs)
    )


def _convolution(reader: Reader, node: Node, made: Tensor) -> None:
    """Append a convolution, which PyTorch calls by another name where it records gradients."""
    *args, transposed, _, groups = node.args
    if transposed:
        raise refused(node, "it is transposed")
    node.args = (*args, groups)
    RULES["conv2d"](reader, node, made)


def _pool(reader: Reader, node: Node, made: tuple[Tensor, ...]) -> None:
    """Append a pool, which PyTorch asks for the places of its maxima where it records gradients."""
    RULES["max_pool2d"](reader, node, made[0])


LEARNING_RULES: dict[str, Rule] = {
    **RULES,
    "convolution": _convolution,
    "max_pool2d_with_indices": _pool,
    **dict.fromkeys(("mm", "addmm", "bmm"), _matrices),
    **dict.fromkeys(("sum", "mean"), _summed),
}
