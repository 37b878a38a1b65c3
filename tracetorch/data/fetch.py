"""Downloads that were asked for: checked, unpacked, and put in place all at once."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError


@dataclass(frozen=True)
class Archive:
    """A file to be had, and what it holds.

    Args:
        url: where it lies.
        md5: its checksum, as the publisher or Tonic gives it.
        holds: the file or folder that unpacking leaves.
        kind: ``"zip"`` or ``"tar"``.

    Example:
        >>> Archive("https://example.org/set.zip", "0" * 32, "set.h5").holds
        'set.h5'
    """

    url: str
    md5: str
    holds: str
    kind: str = "zip"


def find(archive: Archive, folder: Path, *, name: str, download: bool) -> Path:
    """Where the contents of an archive lie, fetched if asked for.

    Args:
        archive: what is looked for.
        folder: where.
        name: how the data set is called.
        download: fetch what is missing.

    Raises:
        FileNotFoundError: it is not there, and was not to be downloaded.
        ConnectionError: it cannot be downloaded.
        ValueError: what came is damaged.
    """
    path = folder / archive.holds
    if path.exists():
        return path
    if not download:
        raise FileNotFoundError(
            f"{name} is not in {folder}: there is no {archive.holds}. Unpack {archive.url} there, "
            "or pass download=True to have that done."
        )
    fetch(archive, folder)
    return path


def fetch(archive: Archive, folder: Path) -> None:
    """Download an archive and unpack it into ``folder``. A failed call leaves nothing behind."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as place:
        packed = Path(place) / "archive"
        try:
            with urllib.request.urlopen(archive.url) as source, packed.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (URLError, OSError) as error:
            raise ConnectionError(
                f"{archive.url} cannot be downloaded: {error}. Fetch it by other means and unpack "
                f"it into {folder}."
            ) from error
        md5 = checksum(packed)
        if md5 != archive.md5:
            raise ValueError(
                f"{archive.url} is not what it was: its MD5 is {md5}, expected {archive.md5}. It "
                "may be damaged or a new version; nothing was kept."
            )
        unpacked = Path(place) / "unpacked"
        try:
            if archive.kind == "zip":
                with zipfile.ZipFile(packed) as source:
                    source.extractall(unpacked)
            else:
                with tarfile.open(packed) as source:
                    source.extractall(unpacked, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise ValueError(
                f"{archive.url} is no {archive.kind} archive: {error}; nothing was kept."
            ) from error
        if not (unpacked / archive.holds).exists():
            raise ValueError(f"{archive.url} holds no {archive.holds}; nothing was kept.")
        os.replace(unpacked / archive.holds, folder / archive.holds)


def checksum(path: Path) -> str:
    """The MD5 of a file."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
