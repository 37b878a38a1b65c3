"""Define the functions of printed Numba kernels that NumPy and Python lack."""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic


@intrinsic
def fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """Compute ``x * y + z``, rounded once: an instruction of the processor, vectorised too."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return x(x, x, x), generate
