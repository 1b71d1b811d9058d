"""Reading every shard of a run: the checksums in the codec find what is damaged.

A pixel of the mask is decided once more from its probabilities, so that also a whole shard in a
wrong place is found. Memory is a few blocks for each worker, whatever the size of the image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from unet.errors import StoreError
from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.execution.worker import Job
from unet.model.classify import decide
from unet.planning.geometry import Box
from unet.planning.layout import Layout
from unet.planning.options import StitchOptions
from unet.planning.plan import Plan
from unet.planning.result_layout import image_arrays, mask_arrays
from unet.stages import probabilities
from unet.stages.stitch import MASK, largest_block, result_location
from unet.storage.location import Location, locate
from unet.storage.store import ArrayRef, ImageArray
from unet.storage.workspace import Workspace

log = logging.getLogger(__name__)

IMAGE_COPY = "image copy"
FULL_SIZE_MASK = "mask level 0"


@dataclass(frozen=True)
class DamagedBlock:
    """A block that is missing or does not read as it was written."""

    array: str
    block: int
    file: Location

    def __str__(self) -> str:
        return f"{self.array}, block {self.block}"


@dataclass(frozen=True)
class ReadJob:
    """Read a block; say what is wrong with it, or nothing."""

    name: str
    array: ArrayRef

    def open(self) -> Callable[[int], str | None]:
        """Open the array on a worker."""
        array = self.array.open()
        return lambda index: _damage(array, array.grid.box(index))


@dataclass(frozen=True)
class DecideJob:
    """Read a block of the mask and decide it again; say what is wrong with it, or nothing."""

    name: str
    probabilities: ArrayRef
    mask: ArrayRef
    threshold: float

    def open(self) -> Callable[[int], str | None]:
        """Open both arrays on a worker."""
        source, mask = self.probabilities.open(), self.mask.open()

        def read(index: int) -> str | None:
            box = mask.grid.box(index)
            damage = _damage(mask, box)
            if damage or _damage(source, box):  # the latter is reported of the probabilities
                return damage
            expected = decide(source.read(box), self.threshold)
            is_equal = np.array_equal(mask.read(box), expected)
            return None if is_equal else "it is not what was predicted"

        return read


def _damage(array: ImageArray, box: Box) -> str | None:
    """What is wrong with a block; it is read twice before it is called damaged."""
    for _ in range(2):
        try:
            array.read(box)
        except StoreError as error:
            damage = str(error).partition(". ")[0]  # without the advice: it is made again here
        else:
            return None
    return damage


def own_arrays(
    workspace: Workspace, plan: Plan, options: StitchOptions
) -> Iterator[tuple[str, ArrayRef]]:
    """The name of every array of a run that this project wrote, and the array."""
    image, result = plan.image, result_location(workspace, plan, options)
    if image.copied:
        copy = locate(image.store).absolute() / image.array
        yield IMAGE_COPY, ArrayRef(copy, image.axes)
    yield probabilities.NAME, probabilities.probabilities_array(plan, workspace)
    if options.image:
        yield from levels("image", result, image_arrays(image))
    yield from levels("mask", result / MASK, mask_arrays(image, plan.mask_layout))


def levels(name: str, group: Location, layouts: list[Layout]) -> Iterator[tuple[str, ArrayRef]]:
    """The levels of a pyramid in `group`, each with its name."""
    for level, layout in enumerate(layouts):
        yield f"{name} level {level}", ArrayRef(group.absolute() / str(level), layout.axes)


def read_all(
    workspace: Workspace, plan: Plan, options: StitchOptions, machines: Machines
) -> tuple[int, list[DamagedBlock]]:
    """The number of all shards, and the damaged and missing ones."""
    arrays = dict(own_arrays(workspace, plan, options))
    shards, damaged = 0, list[DamagedBlock]()

    def record(name: str, array: ImageArray, index: int, damage: str | None) -> None:
        if damage is not None:
            damaged.append(DamagedBlock(name, index, array.shard_file(index)))
            log.warning("%s: %s is made again: %s", workspace.name, damaged[-1], damage)

    machines = machines.moving(plan.blocks, largest_block(plan, options))
    with workspace.lock(), connect(machines) as pool:
        for name, ref in arrays.items():
            job: Job = ReadJob(f"read {workspace.name} {name}", ref)
            if name == FULL_SIZE_MASK:
                source = arrays[probabilities.NAME]
                job = DecideJob(job.name, source, ref, options.threshold)
            array = ref.open()
            shards += array.grid.count
            pool.run(job, range(array.grid.count), partial(record, name, array))
    return shards, damaged
