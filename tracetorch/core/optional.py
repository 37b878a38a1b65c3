"""Require the optional packages of an extra, and say how to install a missing one."""

from __future__ import annotations

from importlib.util import find_spec


def require(*packages: str, extra: str, by: str) -> None:
    """Check that packages are installed, by import name: ``extra`` brings what ``by`` needs."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{by} needs {' and '.join(missing)}, from the extra '{extra}'. Run: pip install "
            f"{' '.join(missing)}; or, in a clone of traceTorch: pip install -e '.[{extra}]'"
        )
