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

from dataclasses import dataclass
from pathlib import Path

from unet import ome, store
from unet.cluster import Client, Job, Progress, run
from unet.geometry import Sizes
from unet.ledger import Ledger, recorded
from unet.location import Location, RemotePath, locate
from unet.plan import Plan
from unet.store import Pixels


@dataclass(frozen=True)
class Workspace:
    """The paths of one image.

    root    of its manifests and ledgers
    stores  of its stores, a path or URL; None for `root`
    """

    root: Path
    stores: str | None = None

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
        found = self.pixels.shard_sizes(self.block)
        for block, size in recorded(self.ledger):
            if 0 <= block < count:
                done[block] |= found(block) == size
        return done


def finish(
    client: Client,
    job: Job,
    target: Target,
    blocks: range,
    writer: str,
    in_flight: int,
    pixels: int,
) -> int:
    """Do the blocks that are not done yet, and record each. Returns how many those were.

    job     writes a block and returns the bytes of its shard
    writer  names this process's ledger file, unique among jobs that run at the same time
    pixels  that the blocks hold in all, for the progress lines
    """
    done = target.done(blocks.stop)
    already = sum(done[blocks.start : blocks.stop])
    if already == len(blocks):
        return 0
    progress = Progress(job.name, len(blocks), already, pixels)
    with Ledger(target.ledger, writer) as ledger:

        def record(block: int, size: int) -> None:
            ledger.add(block, size)
            progress.step()

        run(client, job, (block for block in blocks if not done[block]), record, in_flight)
    return len(blocks) - already


def probabilities_group(plan: Plan, place: Workspace) -> Location:
    """Where the probabilities of a plan lie."""
    return place.work("predict", plan.fingerprint) / "probabilities.ome.zarr"


def probabilities(plan: Plan, place: Workspace) -> Target:
    """The store of probabilities of a plan and its ledger, made if it is not there yet."""
    group = probabilities_group(plan, place)
    described = ome.multiscales(place.name, plan.axes, plan.image.pixel_size, [(1,) * 4], "mean")
    store.write_attributes(group, ome.with_channels(described, plan.classes[1:], (0.0, 1.0)))
    pixels = store.create(group, "0", plan.probabilities())
    return Target(pixels, plan.block, place.ledger(group.parent))
