"""Files that survive a power cut: written to the disk itself before they are believed.

Why: a system keeps what was written in memory for up to half a minute, and may write a record
before what it records. A block is recorded only after its shard, and every folder that names it,
were synchronised. What a server has acknowledged is its to keep.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # by some network file systems


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and have their names on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Have a file's content on the disk; its name in its folder is `sync_folder`'s."""
    _sync(path)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system can say when they are."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
