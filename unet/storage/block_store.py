"""An array that is filled block by block, and the record of what is done."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from unet.storage.ledger import recorded
from unet.storage.store import ImageArray


@dataclass(frozen=True)
class BlockStore:
    """An array that blocks are written to, and the folder of the ledger that records them.

    recompute  blocks to make again, whatever is recorded
    """

    array: ImageArray
    ledger: Path
    recompute: Set[int] = frozenset()

    def done(self) -> bytearray:
        """For each block 1 if it is recorded and its shard is there as recorded, else 0."""
        count = self.array.grid.count
        done = bytearray(count)
        size_of_shard = self.array.shard_sizes()
        for block, size in recorded(self.ledger):
            if 0 <= block < count and block not in self.recompute:
                done[block] |= size_of_shard(block) == size
        return done

    def bytes_left(self) -> int:
        """The bytes of the blocks that are not recorded, before compression."""
        count = self.array.grid.count
        blocks = {block for block, _ in recorded(self.ledger) if 0 <= block < count}
        return self.bytes(count - len(blocks))

    def bytes(self, blocks: int) -> int:
        """The bytes of so many blocks before compression, on average."""
        array = self.array.array
        return math.prod(array.shape) * array.dtype.itemsize * blocks // self.array.grid.count
