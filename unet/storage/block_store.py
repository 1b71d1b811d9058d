"""An array that is filled block by block, and the record of what is done."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from uuid import uuid4

from unet.errors import StoreError
from unet.storage.digest import DIGEST_BYTES, digest
from unet.storage.ledger import Ledger, Written, recorded
from unet.storage.store import ImageArray

NAMED_HOLES = 5


class Digests:
    """The digests of an array's shards as they are now, by block: 16 bytes each."""

    def __init__(self, blocks: int) -> None:
        self._all = bytearray(blocks * DIGEST_BYTES)

    def add(self, block: int, of_shard: bytes) -> None:
        """Add the digest of a block's shard."""
        self._all[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES] = of_shard

    def of(self, block: int) -> str:
        """The digest of a block's shard, as a ledger has it."""
        return self._all[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES].hex()


@dataclass(frozen=True)
class BlockStore:
    """An array that blocks are written to, and the folder of the ledger that records them."""

    array: ImageArray
    ledger: Path

    def done(self) -> bytearray:
        """For each block 1 if it is recorded and its shard is there as recorded, else 0.

        A file of the recorded size and version is believed. One of another version, as in a copied
        folder, is read, and believed if it has the recorded digest; that is recorded, so that it is
        read once.
        """
        done, version_of = bytearray(self.array.grid.count), self.array.shard_versions()
        with ExitStack() as opened:
            ledger: Ledger | None = None
            for block, written in self._recorded():
                actual = None if done[block] else version_of(block)
                if actual is None or actual[0] != written.bytes:
                    continue
                if actual[1] != written.version:
                    content = self.array.shard_file(block).read_bytes()
                    if digest(content).hex() != written.digest:
                        continue
                    moved = Ledger(self.ledger, f"moved-{uuid4().hex}")
                    ledger = ledger or opened.enter_context(moved)
                    ledger.add(block, replace(written, version=actual[1]))
                done[block] = 1
        return done

    def damaged(self, digests: Digests) -> list[int]:
        """The blocks whose shard is not what was recorded, whatever its size and version."""
        is_right = bytearray(self.array.grid.count)
        for block, written in self._recorded():
            is_right[block] |= digests.of(block) == written.digest
        return [block for block, right in enumerate(is_right) if not right]

    def refuse_holes(self, advice: str) -> None:
        """Raise StoreError, naming them, if blocks are missing or are not as they were recorded.

        advice  what to do, as a sentence
        """
        done, grid = self.done(), self.array.grid
        holes = done.count(0)
        if not holes:
            return
        first = islice((block for block in range(grid.count) if not done[block]), NAMED_HOLES)
        names = "; ".join(f"block {block} ({grid.box(block)})" for block in first)
        raise StoreError(
            f"Expected all {grid.count} blocks of {self.array.location} as they were written, but "
            f"{holes} are missing or damaged: {names}{'; ...' if holes > NAMED_HOLES else ''}. "
            f"Their files were probably deleted or changed since. {advice}"
        )

    def bytes_left(self) -> int:
        """The bytes of the blocks that are not recorded, before compression."""
        count = self.array.grid.count
        return self.bytes(count - len({block for block, _ in self._recorded()}))

    def bytes(self, blocks: int) -> int:
        """The bytes of so many blocks before compression, on average."""
        array = self.array.array
        return math.prod(array.shape) * array.dtype.itemsize * blocks // self.array.grid.count

    def _recorded(self) -> Iterator[tuple[int, Written]]:
        """What the ledger says of blocks that this array has."""
        count = self.array.grid.count
        return ((block, w) for block, w in recorded(self.ledger) if 0 <= block < count)
