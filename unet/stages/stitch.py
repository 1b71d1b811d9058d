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

from unet import cluster, ome, store
from unet.decision import decide
from unet.errors import ConfigError, StoreError
from unet.geometry import Sizes, block_box
from unet.layout import Layout, image_block, image_layout, pyramid
from unet.location import Location, RemotePath, files, link_tree, locate
from unet.manifest import fingerprint, write_manifest
from unet.plan import RESULTS, ImageRef, Plan
from unet.pyramid import LevelJob
from unet.sources.base import ORDER
from unet.stages.split import read_plan, refuse_changed
from unet.workspace import Target, Workspace, finish, probabilities, probabilities_group

log = logging.getLogger(__name__)

MASK = Path("labels", "mask")
METADATA = "zarr.json"
NAMED_HOLES = 5


@dataclass(frozen=True)
class Stitched:
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

    def open(self) -> Callable[[int], int]:
        """Open the probabilities and the mask on a worker."""
        plan = self.plan
        found = store.open_pixels(locate(self.source), "0", plan.axes, mode="r")
        target = store.open_pixels(locate(self.target), "0", plan.mask().axes)

        def decide_block(block: int) -> int:
            box = plan.box(block)
            target.write(box, decide(found.read(box), self.threshold))
            return target.shard_file(block, plan.block).stat().st_size

        return decide_block


@dataclass(frozen=True)
class ImageJob:
    """Copy an image that was read in place, block by block, into the result."""

    name: str
    image: ImageRef
    target: str
    axes: str
    block: Sizes

    def open(self) -> Callable[[int], int]:
        """Open both images on a worker."""
        image = self.image
        source = store.open_image(image)
        target = store.open_pixels(locate(self.target), "0", self.axes)

        def copy(block: int) -> int:
            box = block_box(block, image.shape, self.block)
            target.write(box, source.read(box))
            return target.shard_file(block, self.block).stat().st_size

        return copy


def run(place: Workspace, choice: Choice, machines: cluster.Machines) -> None:
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
    store.sweep(probabilities_group(plan, place))
    refuse_holes(plan, source)
    image = replace(plan.image, store="", digest="")
    described = (plan.fingerprint, choice, place.name, image, plan.classes, RESULTS)
    work = place.work("stitch", fingerprint(*described))
    group, result = place.built(work.name)
    store.sweep(group)
    if not _is_published(result, work.name):
        (group / METADATA).unlink(missing_ok=True)
        with cluster.connect(machines) as client:
            builder = _Builder(place, plan, group, client, machines.in_flight)
            shown = builder.image() if choice.image else {}
            builder.mask(choice.threshold, probabilities_group(plan, place).absolute())
        made = {"run": work.name, "files": _count_files(group) + 1}
        store.write_attributes(group, {**shown, "unet": made})
        publish(group, result)
    manifest = Stitched(str(result), str(result / MASK), work.name)
    write_manifest(place.manifest("stitch"), manifest)
    log.info("%s: the mask is %s", place.name, manifest.mask)


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
    if result.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        result.rename(replaced)
    try:
        group.rename(result)
    except OSError:
        replaced.rename(result)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


class _Builder:
    """Makes the parts of the result in its group, each resumed where it was."""

    def __init__(
        self, place: Workspace, plan: Plan, group: Location, client: cluster.Client, in_flight: int
    ) -> None:
        self._place, self._plan, self._group = place, plan.absolute(), group.absolute()
        self._client, self._in_flight = client, in_flight
        size = plan.image.pixel_size
        spacing = (size.get("z", size.get("x", 1.0)), size.get("y", 1.0), size.get("x", 1.0))
        self._levels = pyramid(plan.image.shape, spacing)

    def image(self) -> dict[str, Any]:
        """The image and its smaller levels. Returns its description."""
        image = self._plan.image
        axes = "".join(axis for axis in ORDER if axis in image.axes)
        channels = len(image.channel_names)
        if image.copied:
            link_tree(locate(image.store) / image.array, self._group / "0")
        else:
            block = image_block(image.shape)
            job = ImageJob(self._title("copy"), image, str(self._group), axes, block)
            layout = image_layout(axes, image.shape, channels, image.dtype, block)
            self._finish(job, self._group, 0, layout)
        self._pyramid(self._group, axes, channels, image.dtype, "mean")
        described = ome.multiscales(self._place.name, axes, image.pixel_size, self._levels, "mean")
        return ome.with_channels(described, image.channel_names, image.span)

    def mask(self, threshold: float, probabilities: Location) -> None:
        """The mask, its smaller levels and what its values mean."""
        plan, group = self._plan, self._group / MASK
        layout = plan.mask()
        job = MaskJob(self._title("mask"), plan, threshold, str(probabilities), str(group))
        self._finish(job, group, 0, layout)
        self._pyramid(group, layout.axes, 1, layout.dtype, "mode")
        described = ome.multiscales(
            MASK.name, layout.axes, plan.image.pixel_size, self._levels, "mode"
        )
        store.write_attributes(group, ome.with_label(described, plan.classes))
        store.write_attributes(group.parent, ome.label_list([MASK.name]))

    def _pyramid(self, group: Location, axes: str, channels: int, dtype: str, kind: str) -> None:
        shape = self._plan.image.shape
        for level, (above, here) in enumerate(pairwise(self._levels), start=1):
            smaller = tuple(-(-n // f) for n, f in zip(shape, here, strict=True))
            block = image_block(smaller)
            factors = tuple(b // a for a, b in zip(above, here, strict=True))
            title = self._title(f"{kind} level {level}")
            job = LevelJob(title, str(group), level, axes, block, factors, kind)
            self._finish(job, group, level, image_layout(axes, smaller, channels, dtype, block))

    def _finish(self, job: cluster.Job, group: Location, level: int, layout: Layout) -> None:
        pixels = store.create(group, str(level), layout)
        t, _, *zyx = layout.shard
        block = (t, *zyx)
        of_group = "image" if group == self._group else group.name
        ledger = self._place.ledger(self._group.parent) / of_group / str(level)
        target = Target(pixels, block, ledger)
        blocks = range(store.block_count(pixels.grid_shape, block))
        size = math.prod(pixels.grid_shape)
        finish(self._client, job, target, blocks, "stitch", self._in_flight, size)

    def _title(self, what: str) -> str:
        return f"{what} {self._place.name} {self._plan.fingerprint}"


def _is_published(result: Location, run: str) -> bool:
    """Whether the result that is there is already the one of this run, and whole."""
    recorded = store.read_attributes(result).get("unet")
    return bool(recorded == {"run": run, "files": _count_files(result)})


def _count_files(group: Location) -> int:
    return sum(1 for _ in files(group))
