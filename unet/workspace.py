"""Where the stages of one image keep things, and how they finish what was begun.

    results/<name>/
        ingest.json  split.json  predict/<slab>.json  stitch.json    manifests, one a stage
        <name>.ome.zarr                                              the result
        work/<stage>-<fingerprint>/                                  a store and its ledger

A folder in `work` is named by everything that its pixels depend on. So a changed model, setting or
input never meets the pixels of another run, two jobs of one run share a folder without asking each
other, and going back to an earlier setting finds what was done for it.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from unet import ome, store
from unet.claim import claimed
from unet.cluster import Client, Job, Machines, Progress, run
from unet.geometry import Sizes, grid
from unet.ledger import Ledger, Written, recorded
from unet.plan import Plan
from unet.room import refuse_little_room
from unet.store import Pixels


@dataclass(frozen=True)
class Workspace:
    """The paths of one image."""

    root: Path

    @property
    def name(self) -> str:
        """The image's name in the configuration."""
        return self.root.name

    @property
    def result(self) -> Path:
        """The OME-Zarr that the workflow is run for."""
        return self.root / f"{self.name}.ome.zarr"

    def manifest(self, stage: str) -> Path:
        """The manifest of ingest, split or stitch."""
        return self.root / f"{stage}.json"

    def work(self, stage: str, fingerprint: str) -> Path:
        """The folder of a stage for one fingerprint; it need not be there yet."""
        return self.root / "work" / f"{stage}-{fingerprint}"

    def claimed(self, blocks: range | None = None) -> AbstractContextManager[None]:
        """Keep other runs from this image, or from these blocks of it, while one works on it."""
        return claimed(self.root / "work" / "lock", blocks)


@dataclass(frozen=True)
class Target:
    """A store that blocks are written to, and where they are recorded.

    pixels  the open store
    block   (t, z, y, x) of a block, which is one shard
    ledger  the folder of its ledger
    """

    pixels: Pixels
    block: Sizes
    ledger: Path

    def done(self, count: int) -> bytearray:
        """For each of `count` blocks 1 if it is recorded and its shard is there as recorded."""
        done = bytearray(count)
        for block, size in recorded(self.ledger):
            if 0 <= block < count:
                done[block] |= self._size(block) == size
        return done

    def bytes_left(self, blocks: range) -> int:
        """The bytes of the blocks that are not recorded, before compression."""
        found = {block for block, _ in recorded(self.ledger) if block in blocks}
        return self.bytes(len(blocks) - len(found))

    def bytes(self, blocks: int) -> int:
        """The bytes of so many blocks before compression, on the average."""
        array = self.pixels.array
        every = math.prod(grid(self.pixels.grid_shape, self.block))
        return math.prod(array.shape) * array.dtype.itemsize * blocks // every

    def _size(self, block: int) -> int | None:
        try:
            return self.pixels.shard_file(block, self.block).stat().st_size
        except FileNotFoundError:
            return None


def finish(
    client: Client, job: Job, target: Target, blocks: range, writer: str, machines: Machines
) -> None:
    """Do the blocks that are not done yet, and record each.

    job     writes a block, has it on the disk, and returns it as `Written`
    writer  names this process's ledger file, unique among jobs that run at the same time

    Raises RunError where the disk has no room for them.
    """
    done = target.done(blocks.stop)
    already = sum(done[blocks.start : blocks.stop])
    if already == len(blocks):
        return
    refuse_little_room(
        target.ledger, target.bytes(len(blocks) - already), f"{job.name}: its pixels"
    )
    shape = target.pixels.grid_shape
    pixels = math.prod(shape) * len(blocks) // math.prod(grid(shape, target.block))
    progress = Progress(job.name, len(blocks), already, pixels)
    with Ledger(target.ledger, writer) as ledger:

        def record(block: int, written: Written) -> None:
            ledger.add(block, written)
            progress.step()

        left = (block for block in blocks if not done[block])
        run(client, job, left, record, machines.in_flight, machines.block_seconds)


def probabilities_group(plan: Plan, place: Workspace) -> Path:
    """Where the probabilities of a plan lie."""
    return place.work("predict", plan.fingerprint) / "probabilities.ome.zarr"


def probabilities(plan: Plan, place: Workspace) -> Target:
    """The store of probabilities of a plan and its ledger, made if it is not there yet."""
    group = probabilities_group(plan, place)
    described = ome.multiscales(place.name, plan.axes, plan.image.pixel_size, [(1,) * 4], "mean")
    store.write_attributes(group, ome.with_channels(described, plan.classes[1:], (0.0, 1.0)))
    return Target(
        store.create(group, "0", plan.probabilities()), plan.block, group.parent / "ledger"
    )
