"""Reading every shard of a run: what is damaged is found by the checksums in the codec.

A pixel of the mask is decided once more from its probabilities, so that also a whole shard in a
wrong place is found. Memory is a few blocks a worker, whatever the size of the image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from unet.errors import StoreError
from unet.execution import pool
from unet.model.classify import decide
from unet.planning.geometry import Box, Sizes, block_box
from unet.planning.layout import Layout, without_channels
from unet.planning.plan import Plan
from unet.planning.result_layout import image_arrays, mask_arrays
from unet.stages import stitch
from unet.storage import store
from unet.storage.location import Location, locate
from unet.storage.workspace import Workspace, probabilities_group

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """An array of a run: what it is called, where it is, and its blocks, (t, z, y, x)."""

    name: str
    folder: Location
    axes: str
    block: Sizes


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
    array: Stored

    def open(self) -> Callable[[int], str | None]:
        """Open the array on a worker."""
        pixels = store.open_pixels(self.array.folder, "", self.array.axes, mode="r")

        return lambda index: _wrong_with(
            pixels, block_box(index, pixels.grid_shape, self.array.block)
        )


@dataclass(frozen=True)
class DecideJob:
    """Read a block of the mask and decide it again; say what is wrong with it, or nothing."""

    name: str
    plan: Plan
    probabilities: Stored
    mask: Stored
    threshold: float

    def open(self) -> Callable[[int], str | None]:
        """Open both arrays on a worker."""
        source, mask = (
            store.open_pixels(array.folder, "", array.axes, mode="r")
            for array in (self.probabilities, self.mask)
        )

        def read(index: int) -> str | None:
            box = self.plan.box(index)
            wrong = _wrong_with(mask, box)
            if wrong or _wrong_with(source, box):  # the latter is told of the probabilities
                return wrong
            expected = decide(source.read(box), self.threshold)
            is_that = np.array_equal(mask.read(box), expected)
            return None if is_that else "it is not what was predicted"

        return read


def _wrong_with(pixels: store.Pixels, box: Box) -> str | None:
    """What is wrong with a block; it is read twice before it is called damaged."""
    for _ in range(2):
        try:
            pixels.read(box)
        except StoreError as error:
            wrong = str(error).partition(". ")[0]  # what to do is known: it is made again
        else:
            return None
    return wrong


def arrays_of(place: Workspace, plan: Plan, result: Location, with_image: bool) -> Iterator[Stored]:
    """Every array of a run that this project wrote."""
    image = plan.image.absolute()
    if image.copied:
        folder = locate(image.store) / image.array
        yield Stored("image copy", folder, image.axes, image.block)
    folder = probabilities_group(plan, place).absolute() / "0"
    yield Stored("probabilities", folder, plan.axes, plan.block)
    if with_image:
        yield from levels("image", result, image_arrays(plan.image))
    yield from levels("mask", result / stitch.MASK, mask_arrays(plan))


def levels(name: str, group: Location, layouts: list[Layout]) -> Iterator[Stored]:
    """The levels of a pyramid in `group`."""
    for level, layout in enumerate(layouts):
        block = without_channels(layout.shard)
        yield Stored(f"{name} level {level}", group / str(level), layout.axes, block)


def read_all(
    place: Workspace, plan: Plan, choice: stitch.Choice, machines: pool.Machines
) -> tuple[int, list[DamagedBlock]]:
    """The number of all shards, and the damaged and missing ones."""
    result = stitch.result_of(place, plan, choice).absolute()
    arrays = {array.name: array for array in arrays_of(place, plan, result, choice.image)}
    shards, damaged = 0, list[DamagedBlock]()
    machines = machines.moving(plan.blocks, stitch.most_at_once(plan, choice))
    with place.claimed(), pool.connect(machines) as client:
        for array in arrays.values():
            job: pool.Job = ReadJob(f"read {place.name} {array.name}", array)
            if array.name == "mask level 0":
                threshold = choice.threshold
                job = DecideJob(job.name, plan, arrays["probabilities"], array, threshold)
            pixels = store.open_pixels(array.folder, "", array.axes, mode="r")
            count = store.block_count(pixels.grid_shape, array.block)
            shards += count

            def hear(
                index: int, wrong: str | None, array: Stored = array, pixels: store.Pixels = pixels
            ) -> None:
                if wrong is not None:
                    file = pixels.shard_file(index, array.block)
                    damaged.append(DamagedBlock(array.name, index, file))
                    log.warning("%s: %s is made again: %s", place.name, damaged[-1], wrong)

            blocks = iter(range(count))
            pool.run(client, job, blocks, hear, machines.in_flight, machines.block_seconds)
    return shards, damaged
