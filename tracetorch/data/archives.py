"""Find the files of a data set on disk, or download, check and unpack the archive that has them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from tracetorch.core.files import DISK_ERRORS, link_target

TIMEOUT = 60.0  # seconds without a byte, after which a server is taken to be gone


@dataclass(frozen=True)
class Archive:
    """A downloadable archive with one part of a data set."""

    url: str  # address of the archive
    md5: str  # its checksum, as the publisher or Tonic gives it
    entry: str  # name of the file or folder that unpacking creates
    kind: str = "zip"  # "zip" or "tar"


def find(archive: Archive, folder: Path, *, name: str, download: bool) -> Path:
    """Return the path of what an archive unpacks to, downloaded first where it is missing."""
    path = folder / archive.entry
    if not path.exists():
        if not download:
            raise FileNotFoundError(
                f"{name} is not in {folder}: there is no {archive.entry}. Unpack {archive.url} "
                "there, or pass download=True to have that done."
            )
        fetch(archive, folder)
    return path


def fetch(archive: Archive, folder: Path) -> None:
    """Download an archive and unpack it into ``folder``; a failed call leaves nothing behind."""
    destination = link_target(folder / archive.entry)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # beside its destination, so that what is unpacked can be moved there in one step
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as workspace:
        download, unpacked = Path(workspace) / "archive", Path(workspace) / "unpacked"
        try:
            with urlopen(archive.url, timeout=TIMEOUT) as source, download.open("wb") as target:
                shutil.copyfileobj(source, target)
        except OSError as error:
            if error.errno in DISK_ERRORS:  # of a write, which does not name its file
                raise OSError(error.errno, error.strerror, str(folder)) from error
            raise ConnectionError(
                f"{archive.url} cannot be downloaded: {error}. Fetch it by other means and unpack "
                f"it into {folder}."
            ) from error
        # checked before unpacking: a damaged archive may unpack in part
        md5 = checksum(download)
        if md5 != archive.md5:
            raise ValueError(
                f"{archive.url} has changed or is damaged: its MD5 is {md5}, expected "
                f"{archive.md5}. Nothing was kept; try again, or fetch the data by other means."
            )
        # refuses absolute paths, links that lead outside, and special files
        if archive.kind == "tar":
            shutil.unpack_archive(download, unpacked, "tar", filter="data")
        else:
            shutil.unpack_archive(download, unpacked, "zip")
        try:
            os.replace(unpacked / archive.entry, destination)
        except OSError:  # a folder that another thread or process has unpacked meanwhile
            if not destination.is_dir():
                raise


def checksum(path: Path) -> str:
    """Compute the MD5 of a file, which only guards against damage, in blocks of 1 MiB."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
