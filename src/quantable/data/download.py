"""Downloads from mirrors with SHA-256 and resume, and safe unpacking. Standard library only."""

import hashlib
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from quantable.base.errors import UserError

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without an answer


class MirrorError(Exception):
    """One mirror failed: the next is tried."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file to download. ``sha256`` None: not known, so it cannot be checked."""

    name: str
    urls: Sequence[str]
    sha256: str | None
    unpack: bool


def download(source: SourceFile, folder: Path) -> Path:
    """Fetch ``source`` into ``folder``: mirrors in turn, going on where a partial file ends."""
    path = folder / source.name
    if path.is_file() and verified(path, source.sha256):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    failures: list[str] = []
    for url in source.urls:
        try:
            fetch_checked(url, part, source.sha256)
        except MirrorError as error:
            failures.append(f"  {url}: {error}")
        else:
            return part.replace(path)
    tried = "\n".join(failures)
    raise UserError(f"{source.name}: no mirror delivered it:\n{tried}\nThe same command goes on.")


def fetch_checked(url: str, part: Path, sha256: str | None) -> None:
    """Fetch and verify; where the bytes of an earlier try were to blame, once more from nothing."""
    resumed = part.is_file()
    fetch(url, part)
    if verified(part, sha256):
        return
    part.unlink()
    if not resumed:
        raise MirrorError("its SHA-256 is wrong")
    fetch_checked(url, part, sha256)


def fetch(url: str, part: Path) -> None:
    """Append to ``part`` what ``url`` has beyond it; start anew where the server cannot."""
    if not url.startswith(("http://", "https://")):
        raise MirrorError("only http and https are fetched")
    have = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            goes_on = answer.status == 206 and range_start(answer.headers) == have
            have = have if goes_on else 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else have + int(length)
            with part.open("ab" if goes_on else "wb") as file:
                copy(answer, file, have, total)
    except HTTPError as error:
        if error.code != 416:  # nothing beyond what is here: complete, which the hash decides
            raise MirrorError(f"HTTP status {error.code}") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise MirrorError(getattr(error, "reason", None) or error) from error


def range_start(headers: Message) -> int | None:
    """First byte of a partial answer.

    >>> head = Message()
    >>> head["Content-Range"] = "bytes 21-42/43"
    >>> range_start(head)
    21
    """
    unit, _, span = headers.get("Content-Range", "").partition(" ")
    start = span.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def copy(answer: IO[bytes], file: IO[bytes], have: int, total: int | None) -> None:
    """Copy the rest of a file of ``total`` bytes, of which ``have`` are here."""
    show = sys.stderr.isatty()
    while chunk := answer.read(CHUNK):
        file.write(chunk)
        have += len(chunk)
        if show and total:
            print(f"\r{have / 1e6:.0f} of {total / 1e6:.0f} MB", end="", file=sys.stderr)
    if show:
        print(file=sys.stderr)
    if total is not None and have != total:
        raise MirrorError(f"the connection ended after {have} of {total} bytes")


def verified(path: Path, sha256: str | None) -> bool:
    """Whether the file has this SHA-256; a file whose hash is not known passes."""
    if sha256 is None:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def unpack(archive: Path) -> None:
    """Unpack beside ``archive`` and remove it; nothing is in place before everything is out."""
    folder = archive.parent
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as scratch:
        try:
            extract(archive, Path(scratch))
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            archive.unlink()
            raise UserError(
                f"{archive}: cannot be unpacked ({error}); removed, try again"
            ) from error
        for path in Path(scratch).iterdir():
            target = folder / path.name
            if target.is_dir():  # of an earlier, incomplete copy
                shutil.rmtree(target)
            path.replace(target)
    archive.unlink()


def extract(archive: Path, target: Path) -> None:
    """Extract a tar or zip file; members that point outside ``target`` are refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(target)
        return
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
