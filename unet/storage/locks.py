"""One run at a time: no two processes work on one image, or on one block of it.

Why a lock of the operating system: it ends with its process, however that ends, so no stale lock
is ever left. It also holds where Snakemake's own does not: for a job that outlives its Snakemake.

Why a range: byte k of the file stands for block k. The slabs of one run share no block, so they do
not exclude each other. Every other stage locks the whole file.

Behind a URL there are no such locks: `ownership.claim` keeps other results folders out.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unet.errors import RunError

log = logging.getLogger(__name__)

TO_THE_END = 0
LOCKED = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def lock_file(file: Path, blocks: range | None = None) -> Iterator[None]:
    """Lock an image for this process, or only some blocks of it.

    Raises RunError where another process, on this machine or on another that shares the file
    system, has locked it or some of these blocks.
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
            if error.errno in LOCKED:
                raise RunError(
                    f"Expected no other run of {file.parent.parent}, but a process is working on "
                    f"it: another run, or a job that a killed run left behind. Wait until it ends, "
                    f"or end it (`fuser -v {file}` names it), and run again."
                ) from error
            if error.errno not in NO_LOCKS:
                raise
            log.warning(
                "%s lies on a file system without locks (%s): make sure that no two runs write "
                "there at once",
                *(file.parent, error),
            )
        yield
