"""Read edges and weights from sparse matrices and connected layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.snn.connectivity import connectivity, plain_class

_COLUMNS = {torch.sparse_csr, torch.sparse_csc}


class Given(NamedTuple):
    """Sizes, edges and weights of a sparse layer."""

    in_features: int
    out_features: int
    edges: Tensor
    weight: Tensor | None


def from_matrix(matrix: Any) -> Given:
    """Return the edges of a sparse matrix ``[out, in]`` of PyTorch or SciPy, in its own order."""
    if isinstance(matrix, Tensor):
        if matrix.layout not in (torch.sparse_coo, *_COLUMNS):
            raise TypeError(
                f"matrix must be sparse, coo, csr or csc, got {matrix.layout}. Try "
                "matrix.to_sparse(), or SparseLinear.from_linear."
            )
        matrix = matrix.detach()
        if matrix.layout in _COLUMNS:
            shape, values = tuple(matrix.shape), matrix.values()
            by_row = matrix.layout == torch.sparse_csr
            starts = matrix.crow_indices() if by_row else matrix.ccol_indices()
            others = matrix.col_indices() if by_row else matrix.row_indices()
            along = torch.arange(len(starts) - 1, device=starts.device)
            lines = along.repeat_interleave(starts.diff(), output_size=len(others))
            edges = torch.stack([others, lines] if by_row else [lines, others])
        else:
            shape, values = tuple(matrix.shape), matrix._values()
            edges = matrix._indices().flip(0) if len(shape) == 2 else matrix._indices()
        weight = values
    elif hasattr(matrix, "tocoo"):
        matrix = matrix.tocoo()
        shape = tuple(matrix.shape)
        edges = torch.from_numpy(np.stack([matrix.col, matrix.row]))
        weight = _floats(matrix.data)
    else:
        raise TypeError(
            "matrix must be a sparse tensor of PyTorch, or a sparse matrix of SciPy, got "
            f"{type(matrix).__name__}."
        )
    if len(shape) != 2 or weight.ndim != 1:
        raise ValueError(f"matrix must be [out_features, in_features], got shape {list(shape)}.")
    if not weight.is_floating_point():
        weight = weight.to(torch.get_default_dtype())
    return Given(int(shape[1]), int(shape[0]), edges, weight)


def _floats(values: Any) -> Tensor:
    """Return a copy in PyTorch's default dtype: NumPy's is float64, whatever is stored."""
    if values.dtype.kind not in "iufb":
        raise TypeError(f"weights must be numbers, got {values.dtype}.")
    name = str(torch.get_default_dtype()).removeprefix("torch.")
    is_known = name in ("float32", "float64")
    made = torch.from_numpy(values.astype(name if is_known else "float32"))
    return made if is_known else made.to(torch.get_default_dtype())


def from_linear(linear: nn.Module) -> tuple[Given, Tensor | None]:
    """Return the edges of a linear layer, and the signs of its inputs where it has any."""
    if plain_class(linear) is not nn.Linear:
        raise TypeError(
            f"from_linear takes an nn.Linear, plain or connected, got {type(linear).__name__}."
        )
    weight, rule = cast(Tensor, linear.weight).detach(), connectivity(linear)
    mask = weight != 0 if rule is None or rule.mask is None else rule.mask
    edges = mask.t().nonzero().t()
    signs = None if rule is None or rule.signs is None else rule.signs.flatten()
    outputs, inputs = weight.shape
    return Given(inputs, outputs, edges, weight[edges[1], edges[0]]), signs


def options_without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return keyword arguments; raise where one is given that the source already says."""
    given = [name for name in names if name in options]
    if given:
        raise TypeError(f"{given[0]} follows from what the layer is made of: leave it out.")
    return dict(options)
