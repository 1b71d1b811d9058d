"""Whether there is room on a disk for what a stage will write: told before it begins.

Pixels are compressed, and by how much nobody knows before. So the bytes before compression are what
is surely enough, and less than that is a warning. What cannot do is refused: probabilities have
shrunk to 0.8 of their size on all images tried, and a quarter is less than any run will need.
"""

from __future__ import annotations

import logging
import shutil

from unet.errors import RunError
from unet.storage.location import Location, RemotePath

log = logging.getLogger(__name__)

SHARE_THAT_CANNOT_DO = 4  # one part in so many


def refuse_little_room(folder: Location, needed: int, what: str) -> None:
    """Compare the free space of a folder's disk with what will be written there.

    needed  bytes before compression
    what    will be written, for the sentence

    Raises RunError where less than a quarter is free; warns where it may be too little. A quota is
    not seen here: it ends a run as a full disk does.
    """
    if isinstance(folder, RemotePath):
        return  # a bucket has no end that it tells
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return
    told = (
        f"{what} need {needed / 1e9:.3g} GB before they are compressed, and the disk of {there} "
        f"has {free / 1e9:.3g} GB free"
    )
    if free * SHARE_THAT_CANNOT_DO < needed:
        raise RunError(
            f"Expected room for what will be written: {told}. That cannot do: make room, or put "
            f"the results on another disk, and run again. What was done is kept."
        )
    log.warning("%s, which may be too little", told)
