"""stitch: from the probabilities of all blocks to the full-size mask, in one OME-Zarr.

First it checks that every block is there: a hole is an error that names it. Then each block becomes
mask, and both image and mask get their smaller levels. The metadata of their group, without which
nothing opens it, are written last.

On a disk the finished store takes the place of an earlier one by renaming, if no file of somebody
else is in that. Behind a URL it was built where it ends, in a folder of its own run, and an earlier
one stays where it is. So whoever opens the result sees a whole one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from unet.errors import ConfigError
from unet.execution.machines import Machines
from unet.execution.pool import Pool, connect
from unet.execution.resume import resume
from unet.execution.worker import Job
from unet.model.classify import decide
from unet.planning.axes import without_channels
from unet.planning.layout import Layout
from unet.planning.options import StitchOptions
from unet.planning.plan import Plan
from unet.planning.result_layout import (
    FOLDERS,
    GROUPS,
    IMAGE,
    MASK,
    image_arrays,
    level_factors,
    mask_arrays,
)
from unet.stages.copy import CopyJob, create_copy, refuse_damaged_copy
from unet.stages.manifests import StitchManifest, read_plan
from unet.stages.probabilities import (
    create_probabilities,
    probabilities_array,
    probabilities_group,
)
from unet.stages.pyramid import LevelJob, channels_at_once
from unet.stages.result import Result, result_run, title
from unet.storage.ledger import Written
from unet.storage.link import link_blocks
from unet.storage.manifest import write_manifest
from unet.storage.metadata import write_document
from unet.storage.ownership import delete_partial_files, delete_replaced, publish
from unet.storage.result_record import (
    mend_documents,
    own_files,
    refuse_result_of_others,
    run_of,
    write_record,
)
from unet.storage.store import ArrayRef, refuse_changed
from unet.storage.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskJob:
    """Decide the class of every pixel of a block."""

    name: str
    probabilities: ArrayRef
    mask: ArrayRef
    threshold: float

    def open(self) -> Callable[[int], Written]:
        """Open the probabilities and the mask on a worker."""
        probabilities, mask = self.probabilities.open(), self.mask.open()

        def decide_block(index: int) -> Written:
            values = probabilities.read(mask.grid.box(index))
            return mask.write_block(index, decide(values, self.threshold))

        return decide_block


def run(workspace: Workspace, options: StitchOptions, machines: Machines) -> str:
    """Stitch one image and write its manifest. Returns the name of the result.

    Raises StoreError where a block is missing; an earlier result is then as it was.
    """
    plan = read_plan(workspace)
    if len(plan.classes) > 2 and options.threshold != StitchOptions.threshold:
        raise ConfigError(
            f"Expected `threshold` only with a model of two classes, but {plan.model} has "
            f"{len(plan.classes)}, of which the most probable wins. Leave `threshold` out."
        )
    refuse_changed(plan.image)
    with workspace.lock():
        result = _finish(workspace, plan, options, machines)
    place = result.group
    manifest = StitchManifest(str(place), str(place / FOLDERS[MASK]), result.run)
    write_manifest(workspace.manifest("stitch"), manifest)
    log.info("%s: the mask is %s", workspace.name, manifest.mask)
    return result.run


def _finish(workspace: Workspace, plan: Plan, options: StitchOptions, machines: Machines) -> Result:
    """Make what is missing of a result, and have it in its place."""
    run = result_run(workspace, plan, options)
    built, place = workspace.built(run)
    is_published = run_of(place) == run
    result = Result(workspace, plan, run, place if is_published else built)
    record = result.record(options)
    if is_published:
        mend_documents(workspace.records, record, place)
        delete_replaced(place, own_files(workspace.records))
    else:
        refuse_result_of_others(workspace.records, place, lambda other: other.run == run)
    delete_partial_files(probabilities_group(plan, workspace))
    create_probabilities(plan, workspace).refuse_holes(
        "Run again with --forcerun predict, which does only these."
    )
    refuse_damaged_copy(plan.image, workspace)
    with connect(machines.moving(plan.blocks, largest_block(plan, options))) as pool:
        fill(result, options, pool)
    delete_partial_files(result.group)
    write_record(workspace.records, record)
    if not is_published:
        for group in GROUPS:
            write_document(built / group, record.documents[group])
        publish(built, place, own_files(workspace.records))
    return replace(result, group=place)


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


def fill(result: Result, options: StitchOptions, pool: Pool) -> None:
    """Make the blocks of a result that are not done: first the image, if asked for, then the mask.

    options  which parts there are, and the threshold of the mask
    """
    plan, workspace = result.plan, result.workspace
    if options.image:
        if plan.image.copied:
            again = workspace.to_recompute(title(IMAGE, 0))
            link_blocks(create_copy(plan.image, workspace).array, result.create(IMAGE, 0), again)
        else:
            name = f"copy {workspace.name}"
            _fill_level(result, IMAGE, 0, CopyJob(name, plan.image, result.level(IMAGE, 0)), pool)
        _fill_smaller_levels(result, IMAGE, "mean", pool)
    job = MaskJob(
        name=f"mask {workspace.name}",
        probabilities=probabilities_array(plan, workspace),
        mask=result.level(MASK, 0),
        threshold=options.threshold,
    )
    _fill_level(result, MASK, 0, job, pool)
    _fill_smaller_levels(result, MASK, "mode", pool)


def _fill_smaller_levels(result: Result, pyramid: str, kind: str, pool: Pool) -> None:
    for level, (above, here) in enumerate(pairwise(level_factors(result.plan.image)), start=1):
        job = LevelJob(
            name=f"{title(pyramid, level)} {result.workspace.name}",
            above=result.level(pyramid, level - 1),
            level=result.level(pyramid, level),
            factors=tuple(b // a for a, b in zip(above, here, strict=True)),
            kind=kind,
        )
        _fill_level(result, pyramid, level, job, pool)


def _fill_level(result: Result, pyramid: str, level: int, job: Job, pool: Pool) -> None:
    store = result.create(pyramid, level)
    blocks = range(store.array.grid.count)
    resume(pool, job, store, blocks, "stitch", result.workspace.to_recompute(title(pyramid, level)))
