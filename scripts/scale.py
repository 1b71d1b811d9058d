"""What a run costs beside its pixels, for 1,000 to 1,000,000 blocks: `python scripts/scale.py`.

For each number of blocks: the plan, in seconds and in memory; the look at what was recorded; and
blocks of no cost through real Dask workers and the real record, in milliseconds of this process for
each, its scheduler included, and in memory. Where there are more blocks than `--done`, all but that
many were recorded before, as of a run that goes on: what grows with the number of blocks shows all
the same. Then a run with `--files` finished blocks, each a real file, goes on: the seconds until
its first new block. Last, the files of an image of 100,000 x 100,000 pixels. Ends with status 1
where a bar is missed.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from trial import write_model

from unet.execution.pool import Machines, connect, run
from unet.model.folder import find_model
from unet.planning.geometry import Sizes
from unet.planning.plan import ImageRef, Plan, SplitOptions, make_plan
from unet.planning.result_layout import footprint
from unet.storage import store
from unet.storage.ledger import Ledger, Written
from unet.storage.workspace import Target, finish

PLAN_SECONDS, PLAN_MEGABYTES = 10.0, 500.0
BLOCK_MILLISECONDS = 5.0
RESTART_SECONDS = 10.0
MOST_FILES = 10_000
BLOCK = 16
ENOUGH = SplitOptions(memory=8 * 10**9)


@dataclass(frozen=True)
class Nothing:
    """A job of no cost."""

    name: str

    def open(self) -> Callable[[int], Written]:
        """Nothing is opened, and nothing done."""
        return lambda _block: Written(1)


class Counted(store.Pixels):
    """An array whose blocks are believed as recorded: it has no files."""

    def shard_sizes(self, block: Sizes) -> Callable[[int], int]:
        """Of each block the one byte that is recorded."""
        del block
        return lambda _index: 1


def planned(side: int, model: Path, request: SplitOptions) -> Plan:
    """The real plan of a square grey image."""
    spec = find_model(str(model))
    image = ImageRef(
        *("nowhere", True, "0", "yx", None),
        shape=(1, 1, side, side),
        dtype="uint8",
        channel_names=("0",),
        pixel_size={},
    )
    affine = ((0.0,), (1.0,))
    return make_plan(image, spec, affine, request, 1)


def megabytes() -> float:
    """What this process holds."""
    return psutil.Process().memory_info().rss / 1e6


def tell(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def curve(blocks: int, done: int, folder: Path) -> bool:
    """Plan and do so many blocks; whether the bars are met. Prints the row."""
    side = BLOCK * math.isqrt(blocks)
    small = replace(ENOUGH, shard=(BLOCK, BLOCK), chunk=(BLOCK, BLOCK), core=(BLOCK, BLOCK))
    before, begin = megabytes(), time.monotonic()
    plan = planned(side, folder / "model", small)
    seconds, held = time.monotonic() - begin, megabytes() - before
    made = store.create(folder / f"of-{blocks}", "0", plan.probabilities())
    pixels = Counted(made.location, made.array, made.axes)
    target = Target(pixels, plan.block, folder / f"ledger-{blocks}")
    with Ledger(target.ledger, "before") as ledger:
        for block in range(max(0, plan.blocks - done)):
            ledger.add(block, Written(1))
    begin = time.monotonic()
    before_done = target.done(plan.blocks)
    checked = time.monotonic() - begin
    new = plan.blocks - sum(before_done)
    machines = replace(Machines.for_data(None, 1), threads=4)
    with connect(machines) as client, Ledger(target.ledger, "scale") as ledger:
        run(client, Nothing("warm up"), iter(range(50)), lambda *_: None, machines.in_flight)
        left = (block for block in range(plan.blocks) if not before_done[block])
        before, begin, cpu = megabytes(), time.monotonic(), time.process_time()
        run(client, Nothing("count"), left, ledger.add, machines.in_flight)
        ran, cpu, grown = time.monotonic() - begin, time.process_time() - cpu, megabytes() - before
    each = 1e3 * cpu / new
    tell(
        f"{plan.blocks:9,} {seconds:8.2f} {held:9.1f} {checked:8.2f} {new:9,} {each:10.2f} "
        f"{1e3 * ran / new:10.2f} {grown:10.1f}"
    )
    return seconds < PLAN_SECONDS and held < PLAN_MEGABYTES and each < BLOCK_MILLISECONDS


def restart(files: int, folder: Path) -> bool:
    """Seconds until the first new block of a run with so many finished ones, each a file."""
    side = BLOCK * (math.isqrt(files) + 1)
    small = replace(ENOUGH, shard=(BLOCK, BLOCK), chunk=(BLOCK, BLOCK), core=(BLOCK, BLOCK))
    plan = planned(side, folder / "model", small)
    pixels = store.create(folder / "restart", "0", plan.probabilities())
    target = Target(pixels, plan.block, folder / "restarted")
    with Ledger(target.ledger, "before") as ledger:
        for block in range(files):
            file = pixels.shard_file(block, plan.block)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"1")
            ledger.add(block, Written(1))
    machines = Machines.for_data(None, 1)
    begin = time.monotonic()
    with connect(machines) as client:
        finish(client, Nothing("restart"), target, range(files + 1), "restart", machines)
    seconds = time.monotonic() - begin
    tell(f"restart after {files:,} finished blocks: {seconds:.1f} s with the start of a worker")
    return seconds < RESTART_SECONDS


def count_files(folder: Path) -> bool:
    """The files of a large image's result, as its plan tells them."""
    told = footprint(planned(100_000, folder / "model", ENOUGH))
    tell(f"100,000 x 100,000 px: {told.files:,} files, {told.bytes / 1e9:.1f} GB uncompressed")
    return told.files <= MOST_FILES


def one_number(blocks: int, done: int) -> None:
    """A row of the curve, in a process of its own, so that memory is its own."""
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name) / "model", 1)
        if not curve(blocks, done, Path(name)):
            sys.exit(1)


def measure(given: argparse.Namespace) -> bool:
    """All rows and figures; whether every bar is met."""
    tell("   blocks   plan s   plan MB  check s      done  ms cpu/blk   ms/block   grown MB")
    ok = True
    for blocks in (10**3, 10**4, 10**5, 10**6):
        row = [sys.executable, __file__, "--row", str(blocks), "--done", str(given.done)]
        ok &= subprocess.run(row, check=False).returncode == 0  # noqa: S603 - this script itself
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name) / "model", 1)
        ok &= restart(given.files, Path(name))
        return ok & count_files(Path(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--done", type=int, default=2000, help="blocks that are really done")
    parser.add_argument("--files", type=int, default=100_000, help="finished blocks of a restart")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        one_number(arguments.row, arguments.done)
    elif not measure(arguments):
        sys.exit(1)
