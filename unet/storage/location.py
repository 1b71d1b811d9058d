"""Where things lie: a local path, or a URL that is used like one.

Why `RemotePath` has the methods of `pathlib.Path`: the same lines create, check, resume and publish
a store wherever it lies, and only `locate` decides where that is. Methods to rename are missing,
since nothing needs them: a server writes an object whole or not at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import HTTPStore, S3Store

from unet.errors import ConfigError
from unet.storage.server import FIRST_PATIENCE, client, connect, translate_errors

NEAR = 1 << 16  # a gap of fewer bytes is read too, since a second request costs more
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")
HOST = re.compile(r"[A-Za-z0-9._-]+(:\d+)?")


@dataclass(frozen=True)
class Entry:
    """A file: its path in a folder, its bytes, and a version that changes with its content."""

    path: str
    size: int
    version: int | str


@dataclass(frozen=True)
class RemoteStat:
    """Size and version of an object; `st_size` is named as in `os.stat_result`."""

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
        key = self.key if self._can_list else quote(self.key)
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
            metadata = obstore.head(self._client, self.key)
        return RemoteStat(metadata["size"], _object_version(metadata))

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
        """Whether objects lie under this key; False for a web server, which cannot list them."""
        return self._can_list and any(True for _ in self._list(1))

    def iterdir(self) -> Iterator[RemotePath]:
        """The objects directly in this folder."""
        with translate_errors(self):
            objects = obstore.list_with_delimiter(self._client, self.key or None)["objects"]
        return (RemotePath(self.root, item["path"]) for item in objects)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """The objects under this folder whose keys match, part by part."""
        patterns = PurePosixPath(pattern).parts
        for entry in files(self):
            parts = PurePosixPath(entry.path).parts
            if len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns)):
                yield self / entry.path

    def read_bytes(self) -> bytes:
        """The whole object. Raises FileNotFoundError."""
        with translate_errors(self):
            return obstore.get(self._client, self.key).bytes().to_bytes()

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each range (offset, count) of the object; fetched in parallel."""
        if not ranges:
            return []
        starts, lengths = zip(*ranges, strict=True)
        with translate_errors(self):
            parts = obstore.get_ranges(
                self._client, self.key, starts=starts, lengths=lengths, coalesce=NEAR
            )
        return [part.to_bytes() for part in parts]

    def write_bytes(self, content: bytes) -> None:
        """Write the object, whole or not at all."""
        with translate_errors(self):
            obstore.put(self._client, self.key, content)

    def write_new(self, content: bytes) -> None:
        """Write the object unless it exists; a server without conditional writes overwrites it."""
        with translate_errors(self), suppress(AlreadyExistsError):
            obstore.put(self._client, self.key, content, mode="create")

    def copy_to(self, target: RemotePath) -> None:
        """Copy the object inside its bucket; the server copies, so no bytes pass through here."""
        with translate_errors(self):
            obstore.copy(self._client, self.key, target.key)

    def objects(self) -> S3Store | HTTPStore:
        """The folder as a store that Zarr can open."""
        return connect(self.root, self.key)

    @property
    def _can_list(self) -> bool:
        return self.root.startswith("s3:")

    @property
    def _client(self) -> S3Store | HTTPStore:
        return client(self.root)

    def _list(self, batch_size: int = 1000) -> Iterator[Any]:
        with translate_errors(self):
            for batch in obstore.list(self._client, self.key or None, chunk_size=batch_size):
                yield from batch


Location = Path | RemotePath


def locate(text: str) -> Location:
    """The location that a path or URL of the configuration names; no server is asked.

    Raises ConfigError. It does not repeat a URL: the wrong part may be a secret.
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
            "Expected a URL whose path is made of names, but one part is empty, '.' or '..'. Write "
            "the path as the server lists it."
        )
    return RemotePath(f"{scheme}://{host}", key)


def files(folder: Location) -> Iterator[Entry]:
    """Every file under a folder: on a disk in sorted order, else in the order of the server."""
    if isinstance(folder, RemotePath):
        for item in folder._list():
            path = item["path"][len(folder.key) :].removeprefix("/")
            yield Entry(path, item["size"], _object_version(item))
        return
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stat = Path(parent, name).stat()
            path = Path(parent, name).relative_to(folder)
            yield Entry(path.as_posix(), stat.st_size, stat.st_mtime_ns)


Version = tuple[int, int | str]


def versions(folder: Location) -> Callable[[Location], Version | None]:
    """A function that gives the `version` of a file under a folder; None if there is no such file.

    Why a function: a local disk is asked for each file, a server once for all files.
    """
    if isinstance(folder, RemotePath):
        by_file = {folder / entry.path: (entry.size, entry.version) for entry in files(folder)}
        return lambda file: by_file.get(file)  # type: ignore[arg-type]

    def local_version(file: Location) -> Version | None:
        try:
            return version(file)
        except (FileNotFoundError, NotADirectoryError):
            return None

    return local_version


def version(file: Location) -> Version:
    """The bytes of a file, and what changes with its content. Raises FileNotFoundError."""
    if isinstance(file, RemotePath):
        remote_stat = file.stat()
        return remote_stat.st_size, remote_stat.version
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def check(location: Location) -> None:
    """Raise the errors of a server before any work: no answer, keys refused, no such bucket."""
    if isinstance(location, Path):
        return
    server = connect(location.root, patience=FIRST_PATIENCE)
    with translate_errors(location):
        if location._can_list:  # the answer for a missing object says nothing of its bucket
            next(iter(obstore.list(server, location.key or None, chunk_size=1)), None)
        else:
            with suppress(FileNotFoundError):
                obstore.head(server, (location / ".probe").key)


def _local(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"Expected {text!r} to begin with the home folder of a user, and found no such user. "
            f"Correct the name after ~, or write the whole path."
        ) from error


def _object_version(metadata: Any) -> str:
    return str(metadata["e_tag"] or metadata["last_modified"])
