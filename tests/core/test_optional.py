from __future__ import annotations

import pytest

from tracetorch.core.optional import require


def test_names_what_is_missing_and_the_extra() -> None:
    with pytest.raises(
        ModuleNotFoundError,
        match=r"tt\.plot needs absent_a and absent_b.*pip install -e '\.\[plot\]'",
    ):
        require("torch", "absent_a", "absent_b", extra="plot", by="tt.plot")


def test_is_content_with_what_is_there() -> None:
    require("torch", "numpy", extra="plot", by="tt.plot")
