"""One run at a time: what a process works on, no other may; and behind a URL, one results folder.

Why a lock of the operating system: it vanishes with the process, however that ends, so nothing
stale is ever left; and it holds where Snakemake's own does not: for a job that outlives its
Snakemake. Why a range: byte k of the file stands for block k, so that the slabs of one run,
which share no block, do not exclude each other, while every other stage claims the whole file.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from unet.errors import RunError
from unet.storage.location import RemotePath
from unet.storage.manifest import write_whole

log = logging.getLogger(__name__)

TO_THE_END = 0
HELD = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def claimed(file: Path, blocks: range | None = None) -> Iterator[None]:
    """Claim an image for this process, or only some blocks of it.

    Raises RunError where another process, on this machine or on another that shares the file
    system, has claimed it or some of these blocks.
    """
    if blocks is not None and not blocks:
        yield
        return
    start, length = (0, TO_THE_END) if blocks is None else (blocks.start, len(blocks))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError as error:
            if error.errno in HELD:
                raise RunError(
                    f"Expected no other run of {file.parent.parent}, but a process is working on "
                    f"it: another run, or a job that a killed run left behind. Wait until it ends, "
                    f"or end it (`fuser -v {file}` names it), and run again."
                ) from error
            if error.errno not in NO_LOCKS:
                raise
            log.warning(
                "%s lies on a file system without locks: see to it that no two runs write there "
                "at once (%s)",
                *(file.parent, error),
            )
        yield


def owned(home: RemotePath, own: Path) -> None:
    """Have the stores of an image behind a URL written from one results folder only.

    Why not a lock: none there ends with its process. But what was done is recorded in the results
    folder, so a second folder, on this machine or on another, would do it all again, perhaps on
    another kind of processor, over what the first has recorded, and perhaps published.

    home  of the stores, where an object keeps the name of that folder
    own   file of the results folder with its name, made where there is none

    Raises RunError where another folder was the first.
    """
    if not own.exists():
        write_whole(own, uuid4().hex.encode())
    name, owner = own.read_bytes(), home / "owner"
    owner.write_new(name)
    if owner.read_bytes() != name:
        raise RunError(
            f"Expected {home} to be written from this results folder only, but another one was "
            f"the first, here or on another machine. Go on from that one, or choose another "
            f"`stores` or another name for this image. If it is gone for good, delete {owner}."
        )
