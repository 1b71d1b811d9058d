"""Reading every shard of a run, and comparing it with what was written.

Of each shard a ledger has the digest. So a changed bit is found, and also a whole shard in a wrong
place, an empty one, and one of another run. Memory is a digest for each block, whatever its size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from unet.execution.machines import Machines
from unet.execution.pool import Pool, connect
from unet.planning.options import StitchOptions
from unet.stages import copy, probabilities
from unet.stages.result import Result
from unet.stages.stitch import largest_block
from unet.storage.block_store import BlockStore, Digests
from unet.storage.digest import digest
from unet.storage.location import Location
from unet.storage.store import ArrayRef

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DamagedBlock:
    """A block that is missing or is not what was written."""

    array: str
    block: int
    file: Location

    def __str__(self) -> str:
        return f"{self.array}, block {self.block}"


@dataclass(frozen=True)
class DigestJob:
    """Read the shard of a block: its digest, or None where there is none."""

    name: str
    array: ArrayRef

    def open(self) -> Callable[[int], bytes | None]:
        """Open the array on a worker."""
        array = self.array.open()

        def read(index: int) -> bytes | None:
            try:
                return digest(array.shard_file(index).read_bytes())
            except FileNotFoundError:
                return None

        return read


def own_stores(result: Result, options: StitchOptions) -> Iterator[tuple[str, BlockStore]]:
    """The name of every array of a run that this project wrote, and the array with its ledger."""
    workspace, plan = result.workspace, result.plan
    if plan.image.copied:
        yield copy.COPY, copy.create_copy(plan.image, workspace)
    yield probabilities.NAME, probabilities.create_probabilities(plan, workspace)
    yield from result.stores(options)


def read_all(
    result: Result, options: StitchOptions, machines: Machines
) -> tuple[int, list[DamagedBlock]]:
    """The number of all shards, and the damaged and missing ones."""
    workspace, plan = result.workspace, result.plan
    shards, all_damaged = 0, list[DamagedBlock]()
    with connect(machines.moving(plan.blocks, largest_block(plan, options))) as pool:
        for name, store in own_stores(result, options):
            shards += store.array.grid.count
            for block in store.damaged(_digests(f"read {workspace.name} {name}", store, pool)):
                damaged = DamagedBlock(name, block, store.array.shard_file(block))
                log.warning(
                    "%s: %s (%s) is missing or not what was written: it is made again",
                    *(workspace.name, damaged, damaged.file),
                )
                all_damaged.append(damaged)
    return shards, all_damaged


def _digests(name: str, store: BlockStore, pool: Pool) -> Digests:
    array, blocks = store.array, store.array.grid.count
    digests = Digests(blocks)

    def add(block: int, of_shard: bytes | None) -> None:
        if of_shard is not None:
            digests.add(block, of_shard)

    job = DigestJob(name, ArrayRef(array.location.absolute(), array.axes))
    pool.run(job, range(blocks), add)
    return digests
