"""stitch: from the probabilities of all blocks to the full-size mask, in one OME-Zarr.

First it proves that every block is there: a hole is an error that names it. Then each block becomes
mask, both image and mask get their smaller levels, and the metadata of their group, without which
nothing opens it, are written last. On a disk the finished store then takes the place of an earlier
one by renaming. Behind a URL it was built where it ends, in a folder of its own run, and an earlier
one stays where it is. So whoever opens the result sees a whole one.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from unet.errors import ConfigError, StoreError
from unet.execution import pool
from unet.model.classify import decide
from unet.planning.geometry import Sizes, block_box
from unet.planning.layout import Layout, without_channels
from unet.planning.plan import RESULTS, ImageRef, Plan
from unet.planning.result_layout import image_arrays, level_factors, mask_arrays
from unet.stages.pyramid import LevelJob, channels_at_once
from unet.stages.split import read_plan, refuse_changed
from unet.storage import ome, store
from unet.storage.durable import sync_folder
from unet.storage.ledger import Written
from unet.storage.location import Location, RemotePath, link_tree, locate
from unet.storage.manifest import fingerprint, write_manifest
from unet.storage.workspace import Target, Workspace, finish, probabilities, probabilities_group

log = logging.getLogger(__name__)

MASK = Path("labels", "mask")
NAMED_HOLES = 5


@dataclass(frozen=True)
class StitchManifest:
    """The manifest of the stage: what the result was made of, and where it is."""

    result: str
    mask: str
    fingerprint: str


@dataclass(frozen=True)
class Choice:
    """What the configuration asks of the result.

    threshold  of two classes: a pixel is foreground above this probability
    image      whether the result holds the image beside the mask
    """

    threshold: float = 0.5
    image: bool = True


@dataclass(frozen=True)
class MaskJob:
    """Decide the class of every pixel of a block."""

    name: str
    plan: Plan
    threshold: float
    source: str
    target: str

    def open(self) -> Callable[[int], Written]:
        """Open the probabilities and the mask on a worker."""
        plan = self.plan
        found = store.open_pixels(locate(self.source), "0", plan.axes, mode="r")
        target = store.open_pixels(locate(self.target), "0", plan.mask().axes)

        def decide_block(block: int) -> Written:
            box = plan.box(block)
            target.write(box, decide(found.read(box), self.threshold))
            return Written(target.settle(block, plan.block))

        return decide_block


@dataclass(frozen=True)
class ImageJob:
    """Copy an image that was read in place, block by block, into the result."""

    name: str
    image: ImageRef
    target: str
    axes: str
    block: Sizes

    def open(self) -> Callable[[int], Written]:
        """Open both images on a worker."""
        image = self.image
        source = store.open_image(image)
        target = store.open_pixels(locate(self.target), "0", self.axes)

        def copy(block: int) -> Written:
            box = block_box(block, image.shape, self.block)
            target.write(box, source.read(box))
            return Written(target.settle(block, self.block))

        return copy


def run(place: Workspace, choice: Choice, machines: pool.Machines) -> None:
    """Stitch one image and write its manifest.

    Raises StoreError where a block is missing; an earlier result is then as it was.
    """
    plan = read_plan(place)
    if len(plan.classes) > 2 and choice.threshold != Choice.threshold:
        raise ConfigError(
            f"Expected `threshold` only with a model of two classes, but {plan.model} has "
            f"{len(plan.classes)}, of which the most probable wins. Leave `threshold` out."
        )
    refuse_changed(plan.image)
    source = probabilities(plan, place)
    work = place.work("stitch", fingerprint_of(plan, choice, place))
    built, result = place.built(work.name)
    is_there = store.read_attributes(result).get("unet", {}).get("run") == work.name
    group = result if is_there else built
    with place.claimed():
        store.sweep(probabilities_group(plan, place))
        refuse_holes(plan, source)
        machines = machines.moving(plan.blocks, most_at_once(plan, choice))
        with pool.connect(machines) as client:
            builder = Builder(place, plan, group, place.ledger(work), client, machines)
            shown = builder.image() if choice.image else {}
            builder.mask(choice.threshold)
        store.sweep(group)
        if not is_there:
            store.write_attributes(group, {**shown, "unet": {"run": work.name}})
            publish(group, result)
    manifest = StitchManifest(str(result), str(result / MASK), work.name)
    write_manifest(place.manifest("stitch"), manifest)
    log.info("%s: the mask is %s", place.name, manifest.mask)


def result_of(place: Workspace, plan: Plan, choice: Choice) -> Location:
    """Where the result of a plan ends."""
    work = place.work("stitch", fingerprint_of(plan, choice, place))
    return place.built(work.name)[1]


def fingerprint_of(plan: Plan, choice: Choice, place: Workspace) -> str:
    """Names everything that a result depends on."""
    image = replace(plan.image, store="", digest="")
    return fingerprint(plan.fingerprint, choice, place.name, image, plan.classes, RESULTS)


def most_at_once(plan: Plan, choice: Choice) -> int:
    """The bytes of the largest block that stitching moves: of the probabilities, or of a level.

    With a block of a smaller level goes what is read at once to make it.
    """
    held = [_block_bytes(plan.probabilities())]
    for arrays in (image_arrays(plan.image) if choice.image else [], mask_arrays(plan)):
        held += map(_block_bytes, arrays[:1])
        for above, level in pairwise(arrays):
            larger = math.prod(-(-a // b) for a, b in zip(above.shape, level.shape, strict=True))
            size, channels = np.dtype(level.dtype).itemsize, level.shape[1]
            read = min(channels, channels_at_once(without_channels(level.shard), larger, size))
            held.append(_block_bytes(level) * (channels + larger * read) // channels)
    return max(held)


def _block_bytes(array: Layout) -> int:
    shape = (min(n, s) for n, s in zip(array.shape, array.shard, strict=True))
    return math.prod(shape) * np.dtype(array.dtype).itemsize


def refuse_holes(plan: Plan, source: Target) -> None:
    """Raise StoreError, naming them, if blocks are missing or are not as they were recorded."""
    done = source.done(plan.blocks)
    holes = [block for block in range(plan.blocks) if not done[block]]
    if not holes:
        return
    named = "; ".join(f"block {b} ({plan.box(b)})" for b in holes[:NAMED_HOLES])
    raise StoreError(
        f"Expected {plan.blocks} predicted blocks, but {len(holes)} are missing or damaged: "
        f"{named}{'; ...' if len(holes) > NAMED_HOLES else ''}. Their files were probably deleted "
        f"or truncated after they were written; run again with --forcerun predict, which does "
        f"only these."
    )


def publish(group: Location, result: Location) -> None:
    """Put a finished store in the place of the result: two renames, then the old one is deleted.

    Killed between them, both stores are whole, and the next run does the second rename. A store
    behind a URL is in its place.
    """
    if isinstance(group, RemotePath) or isinstance(result, RemotePath):
        return
    replaced = result.parent / "work" / "replaced"
    is_there = result.exists()
    if is_there:
        shutil.rmtree(replaced, ignore_errors=True)
        result.rename(replaced)
    try:
        group.rename(result)
    except OSError:
        if is_there:
            replaced.rename(result)
        raise
    sync_folder(result.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@dataclass(frozen=True)
class Builder:
    """Makes the parts of a result in `group`, each resumed where it was.

    group    a folder that takes the result's place when it is whole, or the result itself, of
             which then only what is missing is made
    ledgers  of its arrays
    """

    place: Workspace
    plan: Plan
    group: Location
    ledgers: Path
    client: pool.Client
    machines: pool.Machines

    def image(self) -> dict[str, Any]:
        """The image and its smaller levels. Returns its description."""
        image, group = self.plan.image.absolute(), self.group.absolute()
        whole, *_ = arrays = image_arrays(image)
        if image.copied:
            link_tree(locate(image.store) / image.array, group / "0")
        else:
            block = without_channels(whole.shard)
            job = ImageJob(self._title("copy"), image, str(group), whole.axes, block)
            self._finish(job, group, 0, whole)
        self._pyramid(group, arrays, "mean")
        name, levels = self.place.name, level_factors(image)
        described = ome.multiscales(
            name, whole.axes, image.pixel_size, levels, "mean", image.origin
        )
        return ome.with_channels(described, image.channel_names, image.span, image.shown)

    def mask(self, threshold: float) -> None:
        """The mask, its smaller levels and what its values mean."""
        plan, group = self.plan.absolute(), self.group.absolute() / MASK
        image = plan.image
        whole, *_ = arrays = mask_arrays(plan)
        source = str(probabilities_group(plan, self.place).absolute())
        job = MaskJob(self._title("mask"), plan, threshold, source, str(group))
        self._finish(job, group, 0, whole)
        self._pyramid(group, arrays, "mode")
        levels = level_factors(image)
        described = ome.multiscales(
            MASK.name, whole.axes, image.pixel_size, levels, "mode", image.origin
        )
        store.write_attributes(group, ome.with_label(described, plan.classes))
        store.write_attributes(group.parent, ome.label_list([MASK.name]))

    def _pyramid(self, group: Location, arrays: list[Layout], kind: str) -> None:
        steps = pairwise(level_factors(self.plan.image))
        for level, (above, here) in enumerate(steps, start=1):
            layout = arrays[level]
            factors = tuple(b // a for a, b in zip(above, here, strict=True))
            title, block = self._title(f"{kind} level {level}"), without_channels(layout.shard)
            job = LevelJob(title, str(group), level, layout.axes, block, factors, kind)
            self._finish(job, group, level, layout)

    def _finish(self, job: pool.Job, group: Location, level: int, layout: Layout) -> None:
        pixels = store.create(group, str(level), layout)
        block = without_channels(layout.shard)
        name = "image" if group == self.group.absolute() else MASK.name
        ledger = self.ledgers / name / str(level)
        again = self.place.again.get(f"{name} level {level}", frozenset())
        blocks = range(store.block_count(pixels.grid_shape, block))
        target = Target(pixels, block, ledger, again)
        finish(self.client, job, target, blocks, "stitch", self.machines)

    def _title(self, what: str) -> str:
        return f"{what} {self.place.name}"
