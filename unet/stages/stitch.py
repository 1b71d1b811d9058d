"""stitch: from the probabilities of all blocks to the full-size mask, in one OME-Zarr.

First it checks that every block is there: a hole is an error that names it. Then each block becomes
mask, and both image and mask get their smaller levels. The metadata of their group, without which
nothing opens it, are written last.

On a disk the finished store takes the place of an earlier one by renaming. Behind a URL it was
built where it ends, in a folder of its own run, and an earlier one stays where it is. So whoever
opens the result sees a whole one.
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
from unet.execution.machines import Machines
from unet.execution.pool import Pool, connect
from unet.execution.resume import resume
from unet.execution.worker import Job
from unet.fingerprint import fingerprint
from unet.model.classify import decide
from unet.planning.axes import without_channels
from unet.planning.layout import Layout
from unet.planning.options import StitchOptions
from unet.planning.plan import RESULTS, Plan
from unet.planning.result_layout import image_arrays, level_factors, mask_arrays
from unet.stages.copy import CopyJob
from unet.stages.manifests import StitchManifest, read_plan
from unet.stages.probabilities import (
    open_probabilities,
    probabilities_array,
    probabilities_group,
)
from unet.stages.pyramid import LevelJob, channels_at_once
from unet.storage import ome
from unet.storage.block_store import BlockStore
from unet.storage.durable import sync_folder
from unet.storage.ledger import Written
from unet.storage.location import Location, RemotePath, link_tree, locate
from unet.storage.manifest import write_manifest
from unet.storage.store import (
    ArrayRef,
    create_array,
    delete_partial_files,
    read_attributes,
    refuse_changed,
    write_attributes,
)
from unet.storage.workspace import Workspace

log = logging.getLogger(__name__)

MASK = Path("labels", "mask")
NAMED_HOLES = 5


@dataclass(frozen=True)
class MaskJob:
    """Decide the class of every pixel of a block."""

    name: str
    probabilities: ArrayRef
    mask: ArrayRef
    threshold: float

    def open(self) -> Callable[[int], Written]:
        """Open the probabilities and the mask on a worker."""
        probabilities, mask = self.probabilities.open(), self.mask.open(writable=True)

        def decide_block(index: int) -> Written:
            values = probabilities.read(mask.grid.box(index))
            return mask.write_block(index, decide(values, self.threshold))

        return decide_block


def run(workspace: Workspace, options: StitchOptions, machines: Machines) -> None:
    """Stitch one image and write its manifest.

    Raises StoreError where a block is missing; an earlier result is then as it was.
    """
    plan = read_plan(workspace)
    if len(plan.classes) > 2 and options.threshold != StitchOptions.threshold:
        raise ConfigError(
            f"Expected `threshold` only with a model of two classes, but {plan.model} has "
            f"{len(plan.classes)}, of which the most probable wins. Leave `threshold` out."
        )
    refuse_changed(plan.image)
    work = workspace.work("stitch", result_fingerprint(plan, options, workspace))
    built, result = workspace.built(work.name)
    is_published = read_attributes(result).get("unet", {}).get("run") == work.name
    group = result if is_published else built
    with workspace.lock():
        delete_partial_files(probabilities_group(plan, workspace))
        refuse_holes(plan, open_probabilities(plan, workspace))
        machines = machines.moving(plan.blocks, largest_block(plan, options))
        with connect(machines) as pool:
            builder = Builder(workspace, plan, group, workspace.ledger(work), pool)
            attributes = builder.image() if options.image else {}
            builder.mask(options.threshold)
        delete_partial_files(group)
        if not is_published:
            write_attributes(group, {**attributes, "unet": {"run": work.name}})
            publish(group, result)
    manifest = StitchManifest(str(result), str(result / MASK), work.name)
    write_manifest(workspace.manifest("stitch"), manifest)
    log.info("%s: the mask is %s", workspace.name, manifest.mask)


def result_location(workspace: Workspace, plan: Plan, options: StitchOptions) -> Location:
    """Where the result of a plan ends."""
    work = workspace.work("stitch", result_fingerprint(plan, options, workspace))
    return workspace.built(work.name)[1]


def result_fingerprint(plan: Plan, options: StitchOptions, workspace: Workspace) -> str:
    """Names everything that a result depends on."""
    image = replace(plan.image, store="", digest="")
    return fingerprint(plan.fingerprint, options, workspace.name, image, plan.classes, RESULTS)


def largest_block(plan: Plan, options: StitchOptions) -> int:
    """The bytes of the largest block that stitching moves: of the probabilities, or of a level.

    A block of a smaller level counts with what is read at once to make it.
    """
    block_bytes = [_block_bytes(plan.probabilities_layout)]
    images = image_arrays(plan.image) if options.image else []
    for arrays in (images, mask_arrays(plan.image, plan.mask_layout)):
        block_bytes += map(_block_bytes, arrays[:1])
        for above, level in pairwise(arrays):
            larger = math.prod(-(-a // b) for a, b in zip(above.shape, level.shape, strict=True))
            size, channels = np.dtype(level.dtype).itemsize, level.shape[1]
            read = min(channels, channels_at_once(without_channels(level.shard), larger, size))
            block_bytes.append(_block_bytes(level) * (channels + larger * read) // channels)
    return max(block_bytes)


def _block_bytes(array: Layout) -> int:
    shape = (min(n, s) for n, s in zip(array.shape, array.shard, strict=True))
    return math.prod(shape) * np.dtype(array.dtype).itemsize


def refuse_holes(plan: Plan, probabilities: BlockStore) -> None:
    """Raise StoreError, naming them, if blocks are missing or are not as they were recorded."""
    done = probabilities.done()
    holes = [block for block in range(plan.blocks) if not done[block]]
    if not holes:
        return
    names = "; ".join(f"block {b} ({plan.grid.box(b)})" for b in holes[:NAMED_HOLES])
    raise StoreError(
        f"Expected {plan.blocks} predicted blocks, but {len(holes)} are missing or damaged: "
        f"{names}{'; ...' if len(holes) > NAMED_HOLES else ''}. Their files were probably deleted "
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
    earlier = result.parent / "work" / "replaced"
    had_result = result.exists()
    if had_result:
        shutil.rmtree(earlier, ignore_errors=True)
        result.rename(earlier)
    try:
        group.rename(result)
    except OSError:
        if had_result:
            earlier.rename(result)
        raise
    sync_folder(result.parent)
    shutil.rmtree(earlier, ignore_errors=True)


@dataclass(frozen=True)
class Builder:
    """Makes the parts of a result in `group`, each resumed where it was.

    group    a folder that takes the result's place when it is whole, or the result itself, of
             which then only what is missing is made
    ledgers  of its arrays
    """

    workspace: Workspace
    plan: Plan
    group: Location
    ledgers: Path
    pool: Pool

    def image(self) -> dict[str, Any]:
        """The image and its smaller levels. Returns the attributes of its group."""
        image, group = self.plan.image, self.group
        full_size, *_ = arrays = image_arrays(image)
        if image.copied:
            link_tree(locate(image.store) / image.array, group / "0")
        else:
            copy = CopyJob(self._title("copy"), image, _level(group, 0, full_size))
            self._fill("image", 0, full_size, group, copy)
        self._smaller_levels("image", arrays, group, "mean")
        name, levels = self.workspace.name, level_factors(image)
        attributes = ome.multiscales(
            name, full_size.axes, image.pixel_size, levels, "mean", image.origin
        )
        return ome.add_channels(
            attributes, image.channel_names, image.data_range, image.contrast_limits
        )

    def mask(self, threshold: float) -> None:
        """The mask, its smaller levels and what its values mean."""
        plan, image, group = self.plan, self.plan.image, self.group / MASK
        full_size, *_ = arrays = mask_arrays(image, plan.mask_layout)
        probabilities = probabilities_array(plan, self.workspace)
        mask = _level(group, 0, full_size)
        job = MaskJob(self._title("mask"), probabilities, mask, threshold)
        self._fill("mask", 0, full_size, group, job)
        self._smaller_levels("mask", arrays, group, "mode")
        levels = level_factors(image)
        attributes = ome.multiscales(
            MASK.name, full_size.axes, image.pixel_size, levels, "mode", image.origin
        )
        write_attributes(group, ome.add_label(attributes, plan.classes))
        write_attributes(group.parent, ome.label_list([MASK.name]))

    def _smaller_levels(self, name: str, arrays: list[Layout], group: Location, kind: str) -> None:
        steps = pairwise(level_factors(self.plan.image))
        for level, (above, here) in enumerate(steps, start=1):
            job = LevelJob(
                name=self._title(f"{kind} level {level}"),
                above=_level(group, level - 1, arrays[level - 1]),
                level=_level(group, level, arrays[level]),
                factors=tuple(b // a for a, b in zip(above, here, strict=True)),
                kind=kind,
            )
            self._fill(name, level, arrays[level], group, job)

    def _fill(self, name: str, level: int, layout: Layout, group: Location, job: Job) -> None:
        """Make a level of the image or of the mask, and do the blocks that are not done."""
        array = create_array(group, str(level), layout)
        recompute = self.workspace.recompute.get(f"{name} level {level}", frozenset())
        store = BlockStore(array, self.ledgers / name / str(level), recompute)
        resume(self.pool, job, store, range(array.grid.count), "stitch")

    def _title(self, what: str) -> str:
        return f"{what} {self.workspace.name}"


def _level(group: Location, level: int, layout: Layout) -> ArrayRef:
    return ArrayRef(group.absolute() / str(level), layout.axes)
