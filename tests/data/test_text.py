from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracetorch.data import streams, text


def test_default_is_the_python_manual_and_files_are_read_as_bytes(tmp_path: Path) -> None:
    manual = text()
    assert manual.dtype == torch.uint8
    assert len(manual) > 300_000
    content = bytes(manual.tolist())
    assert b"The class statement" in content or b"Class definitions" in content
    assert content.decode().encode() == content
    assert torch.equal(manual, text())
    (tmp_path / "words").write_bytes(b"a\xff\0z")
    assert text(tmp_path / "words").tolist() == [97, 255, 0, 122]
    with pytest.raises(FileNotFoundError, match="none"):
        text(tmp_path / "none")


@given(st.integers(2, 200), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_pieces_continue_each_other(number, batch_size, steps, keep_rest) -> None:
    length = (number - 1) // batch_size
    if length < (1 if keep_rest else steps):
        with pytest.raises(ValueError, match="streams needs at least"):
            streams(torch.arange(number), batch_size, steps, keep_rest=keep_rest)
        return
    pieces = list(streams(torch.arange(number), batch_size, steps, keep_rest=keep_rest))
    x, y = (torch.cat(part) for part in zip(*pieces, strict=True))
    assert torch.equal(y, x + 1)
    assert torch.equal(x[1:], y[:-1])
    assert x[0].tolist() == [b * length for b in range(batch_size)]
    assert len(x) == (length if keep_rest else length // steps * steps)
    assert all(len(piece) == steps for piece, _ in pieces[:-1])


def test_streams_keep_other_dimensions_and_check_their_arguments() -> None:
    x, y = next(streams(torch.rand(21, 3), 4, 5))
    assert x.shape == y.shape == (5, 4, 3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        streams(torch.arange(9), 0, 1)
    with pytest.raises(TypeError, match=r"steps must be an integer, got 1\.5"):
        streams(torch.arange(9), 1, 1.5)  # type: ignore[arg-type]
    few = r"at least batch_size \* steps \+ 1 = 10 values for one piece, got shape \[9\]"
    with pytest.raises(ValueError, match=few):
        streams(torch.arange(9), 3, 3)
    for data in (torch.ones(9, 2).numpy(), (torch.arange(9), torch.arange(9))):
        with pytest.raises(TypeError, match=r"data must be a tensor \[n, \.\.\.\], got (nd|tuple)"):
            streams(data, 2, 2)  # type: ignore[arg-type]
