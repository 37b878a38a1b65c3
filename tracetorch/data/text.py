"""Load text as bytes, and cut it into parallel streams for a language model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tracetorch.core.checks import check_count


def text(path: str | Path | None = None) -> Tensor:
    """Load the bytes of a text file, by default of the Python reference manual.

    The manual is part of Python as ``pydoc_data.topics``, which ``help("class")`` shows; its topics
    are joined in alphabetical order, about 460 kB.

    Args:
        path: any file; a pipe is read to its end; ``None`` for the manual.

    Shape:
        uint8 ``[n]``.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: this Python has no ``pydoc_data``.

    Example:
        >>> bytes(text()[:22].tolist())
        b'The "assert" statement'
    """
    if path is None:
        from pydoc_data.topics import topics

        content = "\n\n\n".join(topics[name] for name in sorted(topics)).encode()
    else:
        content = Path(path).read_bytes()
    # a bytearray: tensors cannot share the memory of immutable bytes
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def streams(
    data: Tensor, batch_size: int, steps: int, *, keep_rest: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a long sequence into parallel streams, and read inputs and next-step targets in pieces.

    ::

        stream b is data[b * L : (b + 1) * L],  L = (n - 1) // batch_size
        x[t, b] = stream b at t,   y[t, b] = stream b at t + 1

    Each piece continues the one before it, so that a model can keep its states:
    ``detach_states()`` after each piece, ``zero_states()`` before the first.

    Args:
        data: the sequence ``[n, ...]``.
        batch_size: number of streams B.
        steps: number of steps T of a piece.
        keep_rest: keep a last piece that is shorter; by default it is left out.

    Shape:
        Pairs of ``[T, B, ...]``.

    Raises:
        TypeError: a count is not an integer, or ``data`` not a tensor.
        ValueError: a count is less than 1, or there are too few data for one piece.

    Example:
        >>> for x, y in streams(torch.arange(9), batch_size=2, steps=2):
        ...     print(x.T.tolist(), y.T.tolist())
        [[0, 1], [4, 5]] [[1, 2], [5, 6]]
        [[2, 3], [6, 7]] [[3, 4], [7, 8]]
    """
    # checked here, at the call, and not when the generator is first advanced
    batch_size = check_count("batch_size", batch_size)
    steps = check_count("steps", steps)
    if not isinstance(data, Tensor):
        raise TypeError(
            f"data must be a tensor [n, ...], got {type(data).__name__}. Wrap an array: "
            "torch.as_tensor(data); of several sequences cut each."
        )
    length = (len(data) - 1) // batch_size
    if length < (1 if keep_rest else steps):
        raise ValueError(
            f"streams needs at least batch_size * steps + 1 = {batch_size * steps + 1} values for "
            f"one piece, got shape {list(data.shape)}. Lower batch_size or steps."
        )
    # the targets are the inputs shifted by one
    x, y = (
        data[shift : shift + batch_size * length]
        .reshape(batch_size, length, *data.shape[1:])
        .transpose(0, 1)
        for shift in (0, 1)
    )
    end = length if keep_rest else length - length % steps
    return ((x[t : t + steps], y[t : t + steps]) for t in range(0, end, steps))
