"""Whether a disk has enough free space for what a stage will write: checked before it begins.

Pixels are compressed, and nobody knows before by how much. The bytes before compression are surely
enough; less free space than that is a warning. Less than a quarter of it is an error: on all images
that were tried, probabilities shrank to 0.8 of their size, so a quarter is too little for any run.
"""

from __future__ import annotations

import logging
import shutil

from unet.errors import RunError
from unet.quantities import with_prefix
from unet.storage.location import Location, RemotePath

log = logging.getLogger(__name__)

LEAST_SHARE = 4  # less than one fourth of the bytes before compression is too little


def refuse_full_disk(folder: Location, needed: int, what: str) -> None:
    """Compare the free space of a folder's disk with what will be written there.

    needed  bytes before compression
    what    will be written, for the message

    Raises RunError where less than a quarter is free; warns where it may be too little. A quota is
    not seen here: a run that meets one ends as on a full disk.
    """
    if isinstance(folder, RemotePath):
        return  # a bucket does not say how much it holds
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(nearest).free
    if free >= needed:
        return
    comparison = (
        f"{what} need {with_prefix(needed, 'B')} before they are compressed, and the disk of "
        f"{nearest} has {with_prefix(free, 'B')} free"
    )
    if free * LEAST_SHARE < needed:
        raise RunError(
            f"Expected enough free space for what will be written: {comparison}. That is too "
            f"little: delete other files, or put the results on another disk, and run again. What "
            f"was done is kept."
        )
    log.warning("%s, which may be too little", comparison)
