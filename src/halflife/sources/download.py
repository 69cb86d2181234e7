"""Downloads of what a publisher lets anybody fetch: they go on after a cut, and count once checked."""

import gzip
import hashlib
import http.client
import json
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from halflife.errors import InputError

TRIES = 5  # connections in a row that may be cut
_BLOCK = 1 << 20  # bytes
_TIMEOUT_S = 60.0


class Remote(NamedTuple):
    """One file of a publisher.

    Args:
        url: where it lies.
        checksum: `md5:…` or `sha256:…`; a URL where the publisher tells it (the text of md5sum, or JSON
            with a `checksum`); None where there is none, and length and gzip's own sum must do.
        unpacks: for an archive, the folder that it holds.
    """

    url: str
    checksum: str | None
    unpacks: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


def fetch(remotes: list[Remote], root: Path) -> None:
    """Fetch what is missing in a folder.

    A file grows as NAME.part, also over several runs, and takes its name only when it is whole and right; an
    archive is unpacked beside and its folder moved in place as one.

    Args:
        remotes: what shall be there.
        root: the folder; made where it is not.

    Raises:
        InputError: for a publisher that cannot be reached, a file cut short again and again, or a checksum
            that is another.
    """
    missing = [remote for remote in remotes if not (root / (remote.unpacks or remote.name)).exists()]
    if not missing:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):
            for remote in missing:
                if not (root / (remote.unpacks or remote.name)).exists():
                    _fetch(remote, root)
        (root / ".download.lock").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"data.root must be a folder that can be written, got {root} ({error.strerror or error}); give "
            "another one or free some space"
        ) from error


def _fetch(remote: Remote, root: Path) -> None:
    """One file, from its first byte to its place."""
    part = root / f"{remote.name}.part"
    for attempt in range(TRIES):
        if _download(remote, part, last=attempt == TRIES - 1):
            break
    _check(remote, part)
    if remote.unpacks is None:
        part.rename(root / remote.name)
        return
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as place:
        whole = Path(place) / remote.name
        part.rename(whole)
        if whole.suffix == ".zip":
            shutil.unpack_archive(whole, place)
        else:
            shutil.unpack_archive(whole, place, filter="data")  # nothing outside the folder
        if not (Path(place) / remote.unpacks).is_dir():
            raise InputError(
                f"{remote.url} must hold the folder {remote.unpacks}, got none; put the files there by hand"
            )
        (Path(place) / remote.unpacks).rename(root / remote.unpacks)


def _open(url: str, start: int = 0) -> Any:
    """A response, from a byte on where the server can."""
    headers = {"User-Agent": "halflife", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None  # nothing is left: the part is whole, or no part of this file
        raise InputError(
            f"data.download must find {url}, got HTTP {error.code} {error.reason}; put the file into "
            "data.root by hand"
        ) from None
    except (urllib.error.URLError, TimeoutError, http.client.HTTPException, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"data.download must reach {url}, got {reason}; check the network, or put the file into "
            "data.root by hand"
        ) from None


def _download(remote: Remote, part: Path, last: bool) -> bool:
    """Add to a part what is missing; whether it is then as long as the server says."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    start = part.stat().st_size if part.exists() else 0
    response = _open(remote.url, start)
    if response is None:
        return True
    with response:
        if start and response.status != http.client.PARTIAL_CONTENT:
            start = 0  # a server that begins anew
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        quiet = not sys.stderr.isatty()
        bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet)
        with bar, part.open("ab" if start else "wb") as out:
            task = bar.add_task(remote.name, total=total, completed=start)
            try:
                while block := response.read(_BLOCK):
                    out.write(block)
                    bar.update(task, advance=len(block))
            except (http.client.HTTPException, ConnectionError, TimeoutError):
                pass  # cut: what came stays, and the length below says that it is not all
    have = part.stat().st_size
    if total is None or have == total:
        return True
    if last:
        raise InputError(
            f"{remote.url} must arrive whole, got {have} of {total} bytes; run again, and it goes on there"
        )
    return False


def _check(remote: Remote, part: Path) -> None:
    """Refuse and remove a part that is not what the publisher has."""
    if remote.checksum is None:
        if remote.name.endswith(".gz"):
            _check_gzip(remote, part)
        return
    kind, _, want = _told(remote.checksum).partition(":")
    with part.open("rb") as stream:
        got = hashlib.file_digest(stream, kind).hexdigest()
    if got != want.lower():
        part.unlink()
        raise InputError(
            f"{remote.url} must have the checksum {kind}:{want}, got {got}, and was removed; run again, or "
            "put the file into data.root by hand"
        )


def _told(checksum: str) -> str:
    """A checksum as `md5:…`, asked of the publisher where it is a URL."""
    if not checksum.startswith("http"):
        return checksum
    with _open(checksum) as response:
        text = response.read(1 << 16).decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        text = str(json.loads(text).get("checksum"))
    found = re.search(r"\b[0-9a-fA-F]{32}\b", text)
    if found is None:
        raise InputError(
            f"{checksum} must tell an MD5 checksum, got none; put the files into data.root by hand"
        )
    return f"md5:{found.group().lower()}"


def _check_gzip(remote: Remote, part: Path) -> None:
    """Read a gzip file through, whose own sum tells of any damage."""
    try:
        with gzip.open(part) as stream:
            while stream.read(_BLOCK):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile):
        part.unlink()
        raise InputError(
            f"{remote.url} must be an undamaged gzip file, got a damaged one, which was removed; run again"
        ) from None
