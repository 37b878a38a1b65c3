"""Find the files of a data set on disk, or download, check and unpack the archive that has them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from tracetorch.core.files import DISK_ERRORS, link_target


@dataclass(frozen=True)
class Archive:
    """A downloadable archive with one part of a data set.

    Args:
        url: address of the archive.
        md5: its checksum, as the publisher or Tonic gives it.
        contents: name of the file or folder that unpacking creates.
        kind: ``"zip"`` or ``"tar"``.

    Example:
        >>> Archive("https://example.org/set.zip", "0" * 32, "set.h5").contents
        'set.h5'
    """

    url: str
    md5: str
    contents: str
    kind: str = "zip"


def check_part(part: str, archives: Mapping[str, Archive], *, name: str) -> None:
    """Raise ``ValueError`` unless the data set ``name`` has the part."""
    if part not in archives:
        allowed = " or ".join(repr(known) for known in archives)
        raise ValueError(f"{name} has the parts {allowed}, got {part!r}.")


def find(archive: Archive, folder: Path, *, name: str, download: bool) -> Path:
    """Return the path of an archive's contents, downloaded first where they are missing.

    Args:
        archive: the archive that has the contents.
        folder: where the contents are or will be.
        name: name of the data set, for messages.
        download: download missing contents.

    Raises:
        FileNotFoundError: the contents are missing, and ``download`` is false.
        ConnectionError: the archive cannot be downloaded.
        OSError: the disk is full, or another error of the file system.
        ValueError: the downloaded archive is damaged.
    """
    path = folder / archive.contents
    if path.exists():
        return path
    if not download:
        raise FileNotFoundError(
            f"{name} is not in {folder}: there is no {archive.contents}. Unpack {archive.url} "
            "there, or pass download=True to have that done."
        )
    fetch(archive, folder)
    return path


def fetch(archive: Archive, folder: Path) -> None:
    """Download an archive and unpack it into ``folder``; a failed call leaves nothing behind."""
    destination = link_target(folder / archive.contents)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # beside its destination, so that the contents can be moved there in one step
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as workspace:
        download = Path(workspace) / "archive"
        try:
            with urllib.request.urlopen(archive.url) as source, download.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (URLError, OSError) as error:
            if error.errno in DISK_ERRORS:
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
        unpacked = Path(workspace) / "unpacked"
        try:
            if archive.kind == "zip":
                with zipfile.ZipFile(download) as source:
                    source.extractall(unpacked)
            else:
                with tarfile.open(download) as source:
                    # refuses absolute paths, links that lead outside, and special files
                    source.extractall(unpacked, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise ValueError(
                f"{archive.url} is no {archive.kind} archive: {error}; nothing was kept."
            ) from error
        if not (unpacked / archive.contents).exists():
            raise ValueError(f"{archive.url} holds no {archive.contents}; nothing was kept.")
        try:
            os.replace(unpacked / archive.contents, destination)
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
