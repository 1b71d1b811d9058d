"""The shards of a store at a second place, if possible without a second copy of their bytes."""

from __future__ import annotations

from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unet.errors import StoreError
from unet.storage.block_store import BlockStore
from unet.storage.location import Location, RemotePath
from unet.storage.ownership import link_file
from unet.storage.store import ImageArray

PARALLEL_COPIES = 16


def link_blocks(source: ImageArray, target: BlockStore, recompute: Set[int] = frozenset()) -> None:
    """Make the shards of an array of ours those of `target` too, where they are not yet.

    On a disk they become hard links, or copies where the file system has no links. A server copies
    them itself, inside one bucket. Raises StoreError where one array is on a disk and the other on
    a server, or where the buckets differ.

    source     of the same layout; the ledger of `target` is that of its blocks
    recompute  blocks to link again, whatever is recorded
    """
    done, files = target.done(), target.array.shard_file
    missing = [
        block for block in range(target.array.grid.count) if not done[block] or block in recompute
    ]
    with ThreadPoolExecutor(PARALLEL_COPIES) as pool:
        # As a list, since an error is raised only where its result is asked for.
        list(pool.map(lambda block: link_shard(source.shard_file(block), files(block)), missing))


def link_shard(source: Location, target: Location) -> None:
    """Make one file appear at a second place too, as `link_blocks` says."""
    if isinstance(source, Path) and isinstance(target, Path):
        link_file(source, target)
    elif (
        isinstance(source, RemotePath)
        and isinstance(target, RemotePath)
        and source.root == target.root
    ):
        source.copy_to(target)
    else:
        raise StoreError(
            f"Expected the ingested image where the result is built, at {target.parent}, but it is "
            f"{source}: `stores` was changed since. Run again with --forcerun ingest."
        )
