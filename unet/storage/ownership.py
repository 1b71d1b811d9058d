"""Whose file it is: the only module that replaces, renames or deletes anything.

Why one module: a file of the user that is lost cannot be made again. So each function here says
whose files it touches, and `tests/test_ownership.py` looks for such calls anywhere else.

- A file with a name of ours (a manifest, a ledger, a shard in a folder of ours) is replaced whole.
- A folder of stores carries the mark of the one results folder that writes there (`claim`).
- A result makes way for the next one only if all its files are ours (`publish`), and then these
  files are deleted one by one, never the folder with whatever is in it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from uuid import uuid4

from unet.errors import RunError, StoreError
from unet.storage.durable import make_folder, sync_file, sync_folder
from unet.storage.location import Location, RemotePath

PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
EARLIER = ".replaced"  # the end of the name of a result that makes way
NAMED_FILES = 3


def write_whole(path: Location, content: bytes) -> None:
    """Write a file of ours: a reader sees the old content or the new one, never a part.

    When this returns, it is on the disk itself.
    """
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
    make_folder(path.parent)
    partial = _partial(path)
    try:
        partial.write_bytes(content)
        sync_file(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def link_file(source: Path, target: Path) -> None:
    """Make a file of ours appear at `target` too: by a hard link, or a copy where there is none."""
    if target.exists() and source.samefile(target):
        return
    make_folder(target.parent)
    partial = _partial(target)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copy2(source, partial)
        sync_file(partial)
    partial.replace(target)


def delete_partial_files(folder: Location) -> None:
    """Delete what killed writers left half written; only while nothing writes there.

    On a server there is nothing to do: an object is written whole or not at all.
    """
    for file in folder.rglob("*.partial") if isinstance(folder, Path) else ():
        if PARTIAL.fullmatch(file.name):
            file.unlink(missing_ok=True)


def delete_files(folder: Path, pattern: str) -> None:
    """Delete the files of a folder of ours that have such names, and it, if it is empty then."""
    for file in folder.glob(pattern):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        folder.rmdir()


def claim(root: Path, home: Location) -> None:
    """Have the stores of an image written from one results folder only.

    Why: what was done is recorded in the results folder. A second folder, on this machine or on
    another, would do it all again, perhaps on another kind of processor, over blocks that the first
    has recorded and perhaps published.

    root  the results folder, whose name is in its file `work/owner`
    home  the stores, whose file `owner` has the name of the folder that was the first

    Raises RunError where that was another.
    """
    if home == root:
        return
    own, owner = root / "work" / "owner", home / "owner"
    if not own.exists():
        write_whole(own, uuid4().hex.encode())
    name = own.read_bytes()
    _write_new(owner, name)
    if owner.read_bytes() != name:
        raise RunError(
            f"Expected {home} to be written from this results folder only, but another one was "
            f"the first, here or on another machine. Go on from that one, or choose another "
            f"`stores` or another name for this image. If it is gone for good, delete {owner}."
        )


def publish(built: Location, result: Location, owns: Callable[[Path, str], bool]) -> None:
    """Put a finished store in the place of the result: two renames, then the old one is deleted.

    Killed between them, both stores are whole, and the next run does the second rename. A store
    behind a URL is in its place.

    owns  whether a file of a result, given by its path in it, was written by a run of ours

    Raises StoreError, and changes nothing, where the old result holds a file of somebody else.
    """
    if isinstance(built, RemotePath) or isinstance(result, RemotePath):
        return
    earlier = _earlier(result)
    _delete_own_files(earlier, owns)
    if earlier.exists():
        raise StoreError(
            f"Expected nothing at {earlier}, where a result lies while another takes its place, "
            f"found files of somebody else. Move it to another folder, and run again."
        )
    refuse_files_of_others(result, owns)
    had_result = result.exists()
    if had_result:
        result.rename(earlier)
    try:
        built.rename(result)
    except OSError:
        if had_result:
            earlier.rename(result)
        raise
    sync_folder(result.parent)
    _delete_own_files(earlier, owns)
    with suppress(OSError):  # another run's folder may be in it
        built.parent.rmdir()


def delete_replaced(result: Location, owns: Callable[[Path, str], bool]) -> None:
    """Delete what is left, and ours, of what made way for a result: `publish` may be killed."""
    if isinstance(result, Path):
        _delete_own_files(_earlier(result), owns)


def refuse_files_of_others(result: Path, owns: Callable[[Path, str], bool]) -> None:
    """Raise StoreError, naming them, if a result holds files that no run of ours wrote."""
    if result.is_symlink() or result.is_file():
        raise StoreError(
            f"Expected nothing at {result}, where the result has to be, or a result of this "
            f"workflow, found a {'link' if result.is_symlink() else 'file'}. Move it to another "
            f"folder, and run again; to have results on another disk, use `stores`."
        )
    others = list(islice((f for f in _files(result) if not owns(result, f)), NAMED_FILES))
    if others:
        raise StoreError(
            f"Expected {result} to hold only what this workflow wrote, since another result has "
            f"to take its place, but somebody else added or changed {', '.join(others)}. Move "
            f"{result.name} to another folder to keep it as it is, or take these files out of it, "
            f"and run again."
        )


def _earlier(result: Path) -> Path:
    """Where a result lies while another takes its place."""
    return result.with_name(result.name + EARLIER)


def _delete_own_files(folder: Path, owns: Callable[[Path, str], bool]) -> None:
    """Delete the files of a result that made way, and the folders that are empty then.

    From the last to the first: the one that says whose they are may be the first.
    """
    for file in reversed([file for file in _files(folder) if owns(folder, file)]):
        (folder / file).unlink(missing_ok=True)
    for parent, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # somebody added a file meanwhile: it stays, where it is
            Path(parent).rmdir()


def _files(folder: Path) -> Iterator[str]:
    """The paths of all files and links in a folder, relative to it."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in sorted([*names, *links]):
            yield Path(parent, name).relative_to(folder).as_posix()


def _write_new(path: Location, content: bytes) -> None:
    """Write a file unless it exists."""
    if isinstance(path, RemotePath):
        path.write_new(content)
    elif not path.exists():
        make_folder(path.parent)
        with suppress(FileExistsError), path.open("xb") as opened:
            opened.write(content)
        sync_folder(path.parent)


def _partial(path: Path) -> Path:
    """A name for a file that is not whole yet, which no other writer has."""
    return path.with_name(f".{path.name}.{uuid4().hex}.partial")
