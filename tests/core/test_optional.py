import pytest

from tracetorch.core.optional import require


def test_missing_packages_and_their_extra_are_named() -> None:
    with pytest.raises(
        ModuleNotFoundError,
        match=r"tt\.plot needs absent_a and absent_b, .* Run: pip install absent_a absent_b; "
        r"or, in a clone of traceTorch: pip install -e '\.\[plot\]'",
    ):
        require("torch", "absent_a", "absent_b", extra="plot", by="tt.plot")
    require("torch", "numpy", extra="plot", by="tt.plot")
