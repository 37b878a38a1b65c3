"""The packages that only the demo needs, and what to say when one is missing."""

from __future__ import annotations

from importlib.util import find_spec


def require(*packages: str) -> None:
    """Check that packages of the ``demo`` extra are installed, without importing them.

    Args:
        packages: import names.

    Raises:
        ModuleNotFoundError: some are missing; the message names them and the extra.

    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"The demo needs {' and '.join(missing)}, from the extra 'demo'. In your clone of "
            "traceTorch run: pip install -e '.[demo]'"
        )
