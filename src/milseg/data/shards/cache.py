"""Where a shard's bytes are: on this machine, or elsewhere and then fetched whole into a bounded folder."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milseg.errors import UserError
from milseg.utils.files import atomic_path, remove_leftovers
from milseg.utils.watch import TooSlow, watched

TRIES = 3
TOUCH_EVERY = 20.0  # seconds between two marks that a fetched shard is in use
# `Path` makes one slash of two; what it left of an address is still no path of a file.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)", re.DOTALL)


def address_of(place: Path | str) -> str | None:
    """The address that a place means, or None where it is a path on this machine.

    >>> address_of(Path("https://host/a.tar")), address_of(Path("file:///data/a.tar")), address_of("a/b.tar")
    ('https://host/a.tar', 'file:///data/a.tar', None)
    """
    parts = _ADDRESS.fullmatch(str(place))
    if parts is None:
        return None
    return f"{parts[1].lower()}://{'/' if parts[1].lower() in ('file', 'local') else ''}{parts[2]}"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar of photos.

    Attributes:
        place: its path, or its address.
        length, sha256: of the whole file where a manifest says it; None and "" otherwise.
        cache, cache_size: where it is kept when it has an address, and how many bytes all that is kept there may take.
    """

    place: str
    length: int | None = None
    sha256: str = ""
    cache: Path
    cache_size: int

    @property
    def stem(self) -> str:
        return re.split(r"[/\\]", self.place)[-1].removesuffix(".tar")

    @property
    def path(self) -> Path:
        """Its file on this machine, there or not yet."""
        return (
            Path(self.place)
            if address_of(self.place) is None
            else kept_file(self.place, self.cache, self.sha256)
        )

    def local(self) -> Path:
        """Its file on this machine, fetched first where it is elsewhere.

        Raises:
            UserError: it cannot be fetched, or is not what the manifest says.
        """
        path = self.path
        if address_of(self.place) is not None and not path.exists():
            fetch(self.place, path, limit=self.cache_size, length=self.length, sha256=self.sha256)
        return path

    def read(self, offset: int, length: int) -> bytes:
        """Some of its bytes.

        Raises:
            UserError: it cannot be read or fetched, or has fewer.
        """
        remote = address_of(self.place) is not None
        for _ in range(TRIES):
            path = self.local()
            try:
                with path.open("rb", buffering=0) as file:
                    file.seek(offset)
                    data = file.read(length)
            except FileNotFoundError:
                if remote:
                    continue  # another process needed the room: fetch it again
                raise UserError(f"{self.place}: no such shard") from None
            except OSError as error:
                raise UserError(f"{self.place}: the shard cannot be read ({error.strerror})") from None
            if remote:
                _mark_used(path)
            if len(data) < length:
                raise UserError(f"{self.place}: the shard is cut short; copy or make it again")
            return data
        raise UserError(
            f"{self.place}: thrown out of {self.cache} as soon as it was fetched; raise --cache-size, as several "
            "shards are read at a time"
        )

    def soon(self) -> None:
        """Begin to fetch it in the background, where it is elsewhere and not here yet; errors come when it is read."""
        if address_of(self.place) is not None and not self.path.exists():
            _in_background(self)


def kept_file(address: str, folder: Path, version: str = "") -> Path:
    """Where the file of an address is kept; its name is still to be recognised. Made anew, it is another file."""
    last = re.sub(r"[^\w.-]", "_", address.rstrip("/").rpartition("/")[2])[-100:]
    return folder / f"{hashlib.sha256((address + version).encode()).hexdigest()[:16]}-{last}"


_USED: dict[Path, float] = {}


def _mark_used(path: Path) -> None:
    """Least recently used goes first: the time of the file says when that was, to every process."""
    now = time.monotonic()
    if now - _USED.get(path, -TOUCH_EVERY) >= TOUCH_EVERY:
        _USED[path] = now
        with suppress(OSError):
            os.utime(path)


_FETCHER: list[ThreadPoolExecutor] = []
_AHEAD: dict[str, Future[Path]] = {}


def _in_background(shard: Shard) -> None:
    if not _FETCHER:
        _FETCHER.append(ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch"))
    for place in [place for place, future in _AHEAD.items() if future.done()]:
        del _AHEAD[place]
    if shard.place not in _AHEAD:
        _AHEAD[shard.place] = _FETCHER[0].submit(shard.local)


def fetch(
    address: str,
    path: Path,
    *,
    limit: int | None = None,
    length: int | None = None,
    sha256: str = "",
    most: int | None = None,
) -> None:
    """Fetch a file to `path`, whole or not at all; processes that want the same one wait for each other.

    Args:
        limit: bytes that the shards in the folder may take; those used longest ago go first. None: no shard.
        length, sha256: what it must have.
        most: bytes that the file itself may have; None: `limit`.

    Raises:
        UserError: it cannot be fetched, is something else, or larger than the limit; the folder cannot be written.
    """
    most = limit if most is None else most
    with _writable(path.parent), _lock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        remove_leftovers(path)
        with atomic_path(path, sync=False) as temporary:
            download(address, temporary, most=most)
            got = temporary.stat().st_size
            if length is not None and got != length:
                raise UserError(f"{address}: {got:,} bytes; expected {length:,} by its manifest")
            if sha256 and file_digest(temporary) != sha256:
                raise UserError(f"{address}: its SHA-256 is not the manifest's; damaged, or made anew since")
            if limit is not None:
                _make_room(path.parent, got, limit, address)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """The cache's folder, made where it is missing; one message when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: the cache of shards cannot be written ({error.strerror or error}); name another folder with "
            "--cache"
        ) from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it when the process dies
        yield


def _make_room(folder: Path, needed: int, limit: int, address: str) -> None:
    if needed > limit:
        raise UserError(f"{address}: {needed:,} bytes, more than --cache-size {limit:,}; raise it")
    found = []
    for path in folder.glob("[0-9a-f]*-*.tar"):
        with suppress(OSError):  # another process may take it away just now
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total + needed <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it.

    Raises:
        UserError: fsspec, or what it needs for this kind of address, is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(
            f"{address}: shards that are elsewhere need fsspec; install it with pip install 'milseg[shards]'"
        ) from None
    try:
        system, path = url_to_fs(address, **_settings(address))
    except Exception as error:  # s3 needs s3fs, gs needs gcsfs; a protocol that nobody knows; no home, no key
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{address}: no address that can be read ({reason})") from None
    return system, path


def _settings(address: str) -> dict[str, Any]:
    """For servers: no limit on the whole of a large file, but one on each wait."""
    if not address.startswith(("http://", "https://")):
        return {}
    try:
        from aiohttp import ClientTimeout
    except ImportError:
        return {}  # fsspec names the missing package
    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}}


def download(address: str, path: Path, *, most: int | None) -> None:
    """Fetch a file of at most so many bytes.

    Raises:
        UserError: nothing there, too large, too slow, or whatever else the store's library says.
    """
    system, source = file_system(address)
    from fsspec.callbacks import Callback

    class Counted(Callback):  # type: ignore[misc]
        """Ends a download that grows too large, or that nobody waits for any more."""

        given_up = False

        def set_size(self, size: int | None) -> None:
            super().set_size(size)
            self._check(size or 0)

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            self._check(self.value)

        def _check(self, size: int) -> None:
            if self.given_up or (most is not None and size > most):
                raise UserError(
                    f"{address}: {size:,} bytes, more than the limit of {most or 0:,}; not fetched. The limit for "
                    "shards is --cache-size"
                )

    for attempt in range(TRIES):
        counted = Counted()
        try:
            watched(
                lambda counted=counted: system.get_file(source, str(path), callback=counted),  # type: ignore[misc]
                lambda: path.stat().st_size if path.exists() else 0,
            )
            counted._check(path.stat().st_size)
            return
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{address}: nothing is there") from None
        except TooSlow as error:
            counted.given_up = True
            raise UserError(f"{address}: given up, the server sent {error}; try again later") from None
        except Exception as error:  # each store's library has its own errors
            if attempt == TRIES - 1:
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"{address}: cannot be fetched ({type(error).__name__}: {reason})") from None
            time.sleep(0.5 * 2**attempt)
