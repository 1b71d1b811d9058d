"""Doing what is left of a stage: the blocks that its ledger does not record."""

from __future__ import annotations

import math
from collections.abc import Set

from unet.execution.pool import Pool
from unet.execution.progress import Progress
from unet.execution.worker import Job
from unet.storage.block_store import BlockStore
from unet.storage.disk_space import refuse_full_disk
from unet.storage.ledger import Ledger, Written


def resume(
    pool: Pool,
    job: Job,
    store: BlockStore,
    blocks: range,
    writer: str,
    recompute: Set[int] = frozenset(),
) -> None:
    """Do those of `blocks` that are not done yet, and record each.

    job        writes a block, has it on the disk, and returns it as `Written`
    writer     names this process's ledger file, unique among jobs that run at the same time
    recompute  blocks to do again, whatever is recorded

    Raises RunError where the disk has too little space for them.
    """
    done = store.done()
    for block in recompute:
        done[block] = 0
    count_done = sum(done[blocks.start : blocks.stop])
    if count_done == len(blocks):
        return
    needed = store.bytes(len(blocks) - count_done)
    refuse_full_disk(store.array.location, needed, f"{job.name}: its pixels")
    grid = store.array.grid
    pixels = math.prod(grid.shape) * len(blocks) // grid.count
    progress = Progress(job.name, len(blocks), count_done, pixels)
    with Ledger(store.ledger, writer) as ledger:

        def record(block: int, written: Written) -> None:
            ledger.add(block, written)
            progress.step()

        pool.run(job, (block for block in blocks if not done[block]), record)
