"""Where things lie: a local path, or a URL that is used like one.

Why a look-alike of `pathlib.Path`: stores are made, checked, resumed and published by the same
lines wherever they lie, and only `locate` asks where that is. What a `RemotePath` leaves out is not
needed there: an object is written whole or not at all, so nothing is renamed or left half written.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote, unquote

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import HTTPStore, S3Store

from unet.errors import ConfigError, StoreError
from unet.storage.server import FIRST_PATIENCE, client, connect, translate_errors

NEAR = 1 << 16  # bytes between ranges that are cheaper to read than to ask twice
COPIES_AT_ONCE = 16
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")
HOST = re.compile(r"[A-Za-z0-9._-]+(:\d+)?")


@dataclass(frozen=True)
class Entry:
    """A file under a folder: its path in it, its bytes, and what changes when its content does."""

    path: str
    size: int
    version: int | str


@dataclass(frozen=True)
class RemoteStat:
    """What a server says of an object, by the names of `os.stat_result` where they fit."""

    st_size: int
    version: str


@dataclass(frozen=True)
class RemotePath:
    """An object, or the folder of all objects whose keys begin with this one and a slash.

    root  "s3://bucket", or "https://host"
    key   of the object, without a slash at either end; "" is the root
    """

    root: str
    key: str

    def __str__(self) -> str:
        key = self.key if self._lists else quote(self.key)
        return f"{self.root}/{key}".removesuffix("/")

    def __truediv__(self, inside: str | PurePath) -> RemotePath:
        parts = PurePosixPath(inside).parts
        return RemotePath(self.root, "/".join(part for part in (self.key, *parts) if part))

    @property
    def name(self) -> str:
        """The last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that this lies in."""
        return RemotePath(self.root, self.key.rpartition("/")[0])

    def absolute(self) -> RemotePath:
        """Itself: a URL means the same on every machine."""
        return self

    def stat(self) -> RemoteStat:
        """Size and version. Raises FileNotFoundError."""
        with translate_errors(self):
            found = obstore.head(self._client, self.key)
        return RemoteStat(found["size"], _version(found))

    def exists(self) -> bool:
        """Whether there is an object of this key."""
        try:
            return bool(self.key) and self.stat() is not None
        except FileNotFoundError:
            return False

    def is_file(self) -> bool:
        """Whether there is an object of this key."""
        return self.exists()

    def is_dir(self) -> bool:
        """Whether objects lie under this key; a web server does not say."""
        return self._lists and any(True for _ in self._listed(1))

    def iterdir(self) -> Iterator[RemotePath]:
        """The objects that lie in this folder itself."""
        with translate_errors(self):
            found = obstore.list_with_delimiter(self._client, self.key or None)["objects"]
        return (RemotePath(self.root, each["path"]) for each in found)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """The objects under this folder whose keys match, part by part."""
        wanted = PurePosixPath(pattern).parts
        for entry in files(self):
            parts = PurePosixPath(entry.path).parts
            if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
                yield self / entry.path

    def read_bytes(self) -> bytes:
        """The whole object. Raises FileNotFoundError."""
        with translate_errors(self):
            return obstore.get(self._client, self.key).bytes().to_bytes()

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of the object, each (offset, count) inside it; fetched side by side."""
        if not ranges:
            return []
        starts, lengths = zip(*ranges, strict=True)
        with translate_errors(self):
            found = obstore.get_ranges(
                self._client, self.key, starts=starts, lengths=lengths, coalesce=NEAR
            )
        return [part.to_bytes() for part in found]

    def write_bytes(self, content: bytes) -> None:
        """Write the object, whole or not at all."""
        with translate_errors(self):
            obstore.put(self._client, self.key, content)

    def write_new(self, content: bytes) -> None:
        """Write the object where there is none; a server that knows no conditions writes it."""
        with translate_errors(self), suppress(AlreadyExistsError):
            obstore.put(self._client, self.key, content, mode="create")

    def unlink(self, *, missing_ok: Literal[True]) -> None:  # noqa: ARG002
        """Delete the object; a server does not say whether it was there."""
        with translate_errors(self):
            obstore.delete(self._client, self.key)

    def copy_to(self, target: RemotePath) -> None:
        """Copy the object inside its bucket; its bytes do not come to this machine."""
        with translate_errors(self):
            obstore.copy(self._client, self.key, target.key)

    def objects(self) -> S3Store | HTTPStore:
        """What zarr opens: the folder as a store of its own."""
        return connect(self.root, self.key)

    @property
    def _lists(self) -> bool:
        return self.root.startswith("s3:")

    @property
    def _client(self) -> S3Store | HTTPStore:
        return client(self.root)

    def _listed(self, at_once: int = 1000) -> Iterator[Any]:
        with translate_errors(self):
            for batch in obstore.list(self._client, self.key or None, chunk_size=at_once):
                yield from batch


Location = Path | RemotePath


def locate(text: str) -> Location:
    """What a path or URL of the configuration names; nothing is asked of a server.

    Raises ConfigError, which does not repeat a URL: what is wrong in it may be a secret.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or "/" in scheme:
        return _local(text)
    host, _, key = rest.partition("/")
    if scheme == "file" and host in ("", "localhost"):
        return Path("/", unquote(key))
    if scheme not in ("s3", "https", "http"):
        raise ConfigError(
            "Expected a local path, or a URL that begins with s3://, https://, http:// or "
            "file:///. Correct it, or copy the file to a local path."
        )
    is_name = (BUCKET if scheme == "s3" else HOST).fullmatch(host)
    if not is_name or (scheme != "s3" and re.search("[?#]", key)):
        raise ConfigError(
            f"Expected a URL {scheme}://{'bucket' if scheme == 's3' else 'host'}/path with nothing "
            f"secret in it, but what stands before the path is no name, or a query follows it. "
            f"Give keys by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or by "
            f"~/.aws/credentials."
        )
    key = key.removesuffix("/") if scheme == "s3" else unquote(key.removesuffix("/"))
    if key and not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise ConfigError(
            "Expected a URL whose path is names, but one of them is empty, '.' or '..'. Write the "
            "path as the server lists it."
        )
    return RemotePath(f"{scheme}://{host}", key)


def files(folder: Location) -> Iterator[Entry]:
    """Every file under a folder, in the order of a sorted walk, or of the server."""
    if isinstance(folder, RemotePath):
        for each in folder._listed():
            path = each["path"][len(folder.key) :].removeprefix("/")
            yield Entry(path, each["size"], _version(each))
        return
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stat = Path(parent, name).stat()
            path = Path(parent, name).relative_to(folder)
            yield Entry(path.as_posix(), stat.st_size, stat.st_mtime_ns)


def sizes(folder: Location) -> Callable[[Location], int | None]:
    """What tells the bytes of many files under a folder, None of one that is not there.

    Why not ask for each: a local disk is asked when it is needed, a server once for all.
    """
    if isinstance(folder, RemotePath):
        listed = {folder / entry.path: entry.size for entry in files(folder)}
        return lambda file: listed.get(file)  # type: ignore[arg-type]

    def size(file: Location) -> int | None:
        try:
            return file.stat().st_size
        except FileNotFoundError:
            return None

    return size


def version(file: Location) -> tuple[int, int | str]:
    """The bytes of a file and what changes when its content does. Raises FileNotFoundError."""
    if isinstance(file, RemotePath):
        found = file.stat()
        return found.st_size, found.version
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def check(location: Location, *, to_write: bool = False) -> None:
    """Raise now what else would be raised in the middle: no server, refused keys, no bucket."""
    if isinstance(location, Path):
        return
    server = connect(location.root, patience=FIRST_PATIENCE)
    probe = (location / ".probe").key
    with translate_errors(location):
        if location._lists:  # of a missing object a server does not say whether its bucket is there
            next(iter(obstore.list(server, location.key or None, chunk_size=1)), None)
        else:
            with suppress(FileNotFoundError):
                obstore.head(server, location.key)
        if to_write:
            obstore.put(server, probe, b"")
            obstore.delete(server, probe)


def link_tree(source: Location, target: Location) -> None:
    """The files of a store again at `target`, without a second copy where that can be had.

    On a disk they are hard links, or copies where the file system knows no links; a server copies
    them itself, inside one bucket. Files that are there already are left. Raises StoreError where
    the two lie in different places.
    """
    if isinstance(source, Path) and isinstance(target, Path):
        shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)
    elif (
        isinstance(source, RemotePath)
        and isinstance(target, RemotePath)
        and source.root == target.root
    ):
        there = sizes(target)
        missing = [e for e in files(source) if there(target / e.path) != e.size]
        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            list(pool.map(lambda e: (source / e.path).copy_to(target / e.path), missing))
    else:
        raise StoreError(
            f"Expected the ingested image where the result is built, at {target.parent}, but it is "
            f"{source}: `stores` was changed since. Run again with --forcerun ingest."
        )


def _link(file: str, copy: str) -> None:
    there, partial = Path(copy), Path(f"{copy}.partial")
    if there.exists() and _is_same(Path(file), there):
        return
    partial.unlink(missing_ok=True)
    try:
        os.link(file, partial)
    except OSError:
        shutil.copy2(file, partial)
    partial.replace(there)


def _is_same(file: Path, copy: Path) -> bool:
    """Whether a file was linked, or copied as it is now."""
    one, other = file.stat(), copy.stat()
    of_time = (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
    return file.samefile(copy) or of_time


def _local(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"Expected the home of a user at the start of {text!r}, and found none."
        ) from error


def _version(found: Any) -> str:
    return str(found["e_tag"] or found["last_modified"])
