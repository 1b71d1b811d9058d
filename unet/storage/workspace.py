"""Where the stages of one image keep things, and how they finish what was begun.

    results/<name>/
        ingest.json  split.json  predict/<slab>.json  stitch.json    manifests, one a stage
        <name>.ome.zarr                                              the result
        work/<stage>-<fingerprint>/                                  a store and its ledger

The stores may lie elsewhere, on another disk or behind a URL: then <stores>/<name>/ holds the same
without the manifests and ledgers, which stay here. Behind a URL nothing can be renamed, so a result
is built where it ends, in a folder of its own run: stitch-<fingerprint>/<name>.ome.zarr.

A folder in `work` is named by everything that its pixels depend on. So a changed model, setting or
input never meets the pixels of another run, two jobs of one run share a folder without asking each
other, and going back to an earlier setting finds what was done for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from unet.execution.pool import Client, Job, Machines, run
from unet.execution.progress import Progress
from unet.planning.geometry import Sizes, grid
from unet.planning.plan import Plan
from unet.storage import ome, store
from unet.storage.disk_space import refuse_little_room
from unet.storage.ledger import Ledger, Written, recorded
from unet.storage.location import Location, RemotePath, locate
from unet.storage.locks import claimed, owned
from unet.storage.store import Pixels


@dataclass(frozen=True)
class Workspace:
    """The paths of one image.

    root    of its manifests and ledgers
    stores  of its stores, a path or URL; None for `root`
    again   of arrays, by their names in `unet.stages.integrity`, the blocks to make again
            although they were done
    """

    root: Path
    stores: str | None = None
    again: Mapping[str, Set[int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The image's name in the configuration."""
        return self.root.name

    @property
    def home(self) -> Location:
        """The folder of its stores."""
        return locate(self.stores) / self.name if self.stores else self.root

    @property
    def result(self) -> Location:
        """The OME-Zarr that the workflow is run for, on a disk."""
        return self.home / f"{self.name}.ome.zarr"

    def built(self, run: str) -> tuple[Location, Location]:
        """Where the OME-Zarr of a run is built, and where it ends: one place, behind a URL."""
        if isinstance(self.home, RemotePath):
            return (self.home / run / self.result.name,) * 2
        return self.home / "work" / run / "result.ome.zarr", self.result

    def manifest(self, stage: str) -> Path:
        """The manifest of ingest, split or stitch."""
        return self.root / f"{stage}.json"

    def work(self, stage: str, fingerprint: str) -> Location:
        """The folder of a stage for one fingerprint; it need not be there yet."""
        return self.home / "work" / f"{stage}-{fingerprint}"

    def ledger(self, work: Location) -> Path:
        """The folder of the ledger of what is in `work`, which stays beside the manifests."""
        return self.root / "work" / work.name / "ledger"

    @contextmanager
    def claimed(self, blocks: range | None = None) -> Iterator[None]:
        """Keep other runs from this image, or from these blocks of it, while one works on it."""
        home = self.home
        where = self.root if isinstance(home, RemotePath) else home
        with claimed(where / "work" / "lock", blocks):
            if isinstance(home, RemotePath):
                owned(home, self.root / "work" / "owner")
            yield


@dataclass(frozen=True)
class Target:
    """A store that blocks are written to, and where they are recorded.

    pixels  the open store
    block   (t, z, y, x) of a block, which is one shard
    ledger  the folder of its ledger
    again   blocks that are not believed, whatever is recorded
    """

    pixels: Pixels
    block: Sizes
    ledger: Path
    again: Set[int] = frozenset()

    def done(self, count: int) -> bytearray:
        """For each of `count` blocks 1 if it is recorded and its shard is there as recorded."""
        done = bytearray(count)
        found = self.pixels.shard_sizes(self.block)
        for block, size in recorded(self.ledger):
            if 0 <= block < count and block not in self.again:
                done[block] |= found(block) == size
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
    needed = target.bytes(len(blocks) - already)
    refuse_little_room(target.pixels.location, needed, f"{job.name}: its pixels")
    shape = target.pixels.grid_shape
    pixels = math.prod(shape) * len(blocks) // math.prod(grid(shape, target.block))
    progress = Progress(job.name, len(blocks), already, pixels)
    with Ledger(target.ledger, writer) as ledger:

        def record(block: int, written: Written) -> None:
            ledger.add(block, written)
            progress.step()

        left = (block for block in blocks if not done[block])
        run(client, job, left, record, machines.in_flight, machines.block_seconds)


def probabilities_group(plan: Plan, place: Workspace) -> Location:
    """Where the probabilities of a plan lie."""
    return place.work("predict", plan.fingerprint) / "probabilities.ome.zarr"


def probabilities(plan: Plan, place: Workspace) -> Target:
    """The store of probabilities of a plan and its ledger, made if it is not there yet."""
    group = probabilities_group(plan, place)
    image = plan.image
    described = ome.multiscales(
        place.name, plan.axes, image.pixel_size, [(1,) * 4], "mean", image.origin
    )
    store.write_attributes(group, ome.with_channels(described, plan.classes[1:], (0.0, 1.0)))
    pixels = store.create(group, "0", plan.probabilities())
    again = place.again.get("probabilities", frozenset())
    return Target(pixels, plan.block, place.ledger(group.parent), again)
