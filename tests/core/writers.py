"""List every function that writes a file, and run each on a full disk.

``python -m tests.core.writers FOLDER LIMIT NAME...`` lets no file grow beyond ``LIMIT`` bytes, runs
each writer in a process of its own, and prints how each ended as JSON.
"""

import hashlib
import json
import os
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


def write_on_full_disk(name: str, folder: Path, limit: int) -> None:
    """Write where no file may grow beyond ``limit`` bytes; report what happened beside the folder.

    Python ignores the signal that such a write raises: the system answers with an error.
    """
    import resource

    path = folder / name
    source(path)
    path.write_bytes(OLD)
    report: dict[str, Any] = {"error": None}
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        ALL[name](path)
    except Exception as error:
        kind = type(error).__name__
        report = {"error": kind, "os": isinstance(error, OSError), "text": str(error)}
        report["errno"] = getattr(error, "errno", None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report["old"] = path.read_bytes() == OLD
    report["others"] = [each.name for each in folder.iterdir() if each != path]
    (folder.parent / f"{name}.json").write_text(json.dumps(report))


def main(folder: Path, limit: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in names:
        place = folder / name.replace(".", "_") / "place"
        place.mkdir(parents=True)
        child = os.fork()  # the imports are made once
        if child == 0:
            write_on_full_disk(name, place, limit)
            return  # the interpreter ends as it always does: some faults show only then
        _, status = os.waitpid(child, 0)
        report = place.parent / f"{name}.json"
        results[name] = json.loads(report.read_text()) if report.exists() else {}
        results[name]["exit"] = os.waitstatus_to_exitcode(status)
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
