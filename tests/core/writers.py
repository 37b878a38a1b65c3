"""List every function that writes a file, and run one on a full disk.

``python -m tests.core.writers PATH LIMIT`` lets no file grow beyond ``LIMIT`` bytes, runs the
writer of that name, and prints how it ended as JSON.
"""

import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tracetorch as tt
from tracetorch import snn
from tracetorch.core.files import atomic_replace
from tracetorch.data.heidelberg import Archive, fetch

OLD = b"an old file"


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 60), snn.LIF(60))


def save_html(path: Path) -> None:
    _, recorded = tt.probe.record(model(), torch.rand(5, 1, 40), ["output"])
    tt.plot.save_html(recorded, path)


def fetch_file(path: Path) -> None:
    """Unpack a file from an archive beside its folder; it is made before the disk is full."""
    archive = source(path)
    fetch(Archive(archive.as_uri(), _md5(archive), path.name), path.parent)


def source(path: Path) -> Path:
    archive = path.parent.parent / f"{path.name}.zip"
    if not archive.exists():
        with atomic_replace(archive) as unfinished, zipfile.ZipFile(unfinished, "w") as made:
            made.writestr(path.name, bytes(5000))
    return archive


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# by the name of the file that each writes; those of the second table take seconds
WRITERS: dict[str, Callable[[Path], Any]] = {
    "model.safetensors": lambda path: tt.save(model(), path),
    "exact.nir": lambda path: tt.nir.save(model(), path, (40,)),
    "compact.nir": lambda path: tt.nir.save(
        model(), path, (40,), mode="compact", allow_hard_reset=True
    ),
    "recording.html": save_html,
    "playground.html": lambda path: tt.plot.save_playground(snn.LIF(1), path),
    "set.bin": fetch_file,
}
SLOW: dict[str, Callable[[Path], Any]] = {
    "events.gif": lambda path: tt.plot.save_animation(torch.rand(3, 1, 2, 8, 8), path),
    "events.html": lambda path: tt.plot.save_animation(torch.rand(3, 1, 2, 8, 8), path),
    "model.onnx": lambda path: tt.export.onnx(model(), path, torch.rand(1, 40)),
}
ALL = WRITERS | SLOW


def write_on_full_disk(path: Path, limit: int) -> None:
    """Write where no file may grow beyond ``limit`` bytes.

    Python ignores the signal that such a write raises: the system answers with an error.
    """
    import resource

    source(path)
    path.write_bytes(OLD)
    report: dict[str, Any] = {}
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        ALL[path.name](path)
    except OSError as error:
        report = {"text": str(error), "errno": error.errno}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report["old"] = path.read_bytes() == OLD
    report["others"] = [each.name for each in path.parent.iterdir() if each != path]
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    write_on_full_disk(Path(sys.argv[1]), int(sys.argv[2]))
