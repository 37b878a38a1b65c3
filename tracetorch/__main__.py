"""``python -m tracetorch info``: show the backends, and why one is unavailable."""

from __future__ import annotations

import platform
import sys

import torch

import tracetorch
from tracetorch import fuse
from tracetorch.fuse.runtime.kernel_cache import folder


def info() -> str:
    """Versions, and each backend with the reason why it cannot run, if there is one."""
    lines = [
        f"traceTorch {tracetorch.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} threads",
        f"kernels are kept in {folder()}",
    ]
    for name in fuse.NAMES:
        if name != "auto":
            reason = fuse.unavailable_reason(name)
            lines.append(f"{name:8}{'available' if reason is None else f'no: {reason}'}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
    if arguments != ["info"]:
        print("usage: python -m tracetorch info", file=sys.stderr)  # noqa: T201
        return 2
    print(info())  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
