"""Write a pointwise stage as a kernel over its places: in float32, or as a child says."""

from __future__ import annotations

from typing import Any

from tracetorch.export.c_code.stages import Array, Pointwise
from tracetorch.fuse.ir.graph import Line
from tracetorch.fuse.ir.graph import Value as GraphValue
from tracetorch.fuse.ir.kernel import Axis, Dtype, Extent, Kernel, KernelBuilder, Operand, Role

_LANE = (Axis.LANE,)


class StageKernel:
    """Builder of the kernel of a stage; ``values`` holds what was loaded and computed, by name."""

    dtype = Dtype.FLOAT32

    def __init__(self, stage: Pointwise) -> None:
        self.stage, self.k = stage, KernelBuilder("stage", "", self.dtype)
        self.values: dict[str, Any] = {}

    def kernel(self) -> Kernel:
        """Return the kernel."""
        k, stage = self.k, self.stage
        buffers = {
            (role, name): k.buffer(role, name, (Extent.LANES,), self.buffer_dtype(view.array))
            for role, views in ((Role.START, stage.reads), (Role.END, stage.writes))
            for name, view in views.items()
        }
        with k.lanes():
            for name, view in stage.reads.items():
                loaded = k.load(buffers[Role.START, name], _LANE, name)
                self.values[name] = self.loaded(loaded, view.array)
            for line in stage.graph.lines:
                self.values[line.name] = self.line(line)
            for name in stage.writes:
                k.store(buffers[Role.END, name], _LANE, self.stored(stage.graph.outputs[name]))
        return k.kernel()

    def buffer_dtype(self, array: Array) -> Dtype:
        """Return the type of the values of an array."""
        return Dtype.BOOL if array.boolean else self.dtype

    def loaded(self, value: Operand, array: Array) -> Any:
        """Return what stands for a value that was loaded."""
        return value

    def line(self, line: Line) -> Any:
        """Append a line of the graph; return what stands for its value."""
        return self.k.op(line.op, *map(self.stored, line.args))

    def stored(self, value: GraphValue) -> Operand:
        """Return the operand of a value of the graph."""
        found: Operand = self.values[value] if isinstance(value, str) else value
        return found
