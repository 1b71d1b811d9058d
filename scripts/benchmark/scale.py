"""What a run costs beside its pixels, as blocks become many: `python -m scripts.benchmark.scale`.

For each number of blocks, one row: the seconds and the memory of the plan; the seconds to compare
the record of what is done with the store; and of blocks of no cost, done by a real Dask worker and
really recorded, the milliseconds of this process for each, its scheduler included, and the memory
that it grew by. Of many blocks only the last `--done` are done, and the others are recorded before,
as in a run that goes on: what grows with the number of blocks shows all the same.

Then a run goes on that has `--files` finished blocks, each a real file: the seconds until its first
new block. Last, the files of an image of 100,000 x 100,000 pixels, as its plan counts them. The
exit status is 1 where a bar is missed.
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

from scripts.benchmark.stages import write_model
from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.execution.resume import resume
from unet.model.folder import find_model
from unet.planning.image import IngestedImage
from unet.planning.options import SplitOptions
from unet.planning.plan import Plan, make_plan
from unet.storage.block_store import BlockStore
from unet.storage.ledger import Ledger, Written
from unet.storage.location import Version, version
from unet.storage.store import ImageArray, create_array

PLAN_SECONDS, PLAN_MEGABYTES = 10.0, 500.0
BLOCK_MILLISECONDS = 5.0
RESTART_SECONDS = 10.0
MOST_FILES = 10_000
BLOCK = 16
DEFAULT_BLOCKS = SplitOptions(memory=8 * 10**9)
TINY_BLOCKS = replace(
    DEFAULT_BLOCKS, shard=(BLOCK, BLOCK), chunk=(BLOCK, BLOCK), core=(BLOCK, BLOCK)
)
COLUMNS = "   blocks   plan s   plan MB  check s      done  ms cpu/blk   ms/block   grown MB"


EMPTY = Written(1, "", 0)  # a block of one byte


@dataclass(frozen=True)
class EmptyJob:
    """A job of no cost."""

    name: str

    def open(self) -> Callable[[int], Written]:
        """Nothing is opened, and nothing done."""
        return lambda _block: EMPTY


class ArrayWithoutFiles(ImageArray):
    """An array whose blocks seem to be there as they were recorded: each of one byte."""

    def shard_versions(self) -> Callable[[int], Version | None]:
        """One byte for each block."""
        return lambda _index: (EMPTY.bytes, EMPTY.version)


def make_plan_of(side: int, model: Path, options: SplitOptions) -> Plan:
    """The real plan of a square grey image that is not there."""
    image = IngestedImage(
        store="nowhere",
        copied=True,
        array="0",
        axes="yx",
        channels=None,
        shape=(1, 1, side, side),
        dtype="uint8",
        channel_names=("0",),
        pixel_size={},
        origin={},
        block=None,
        data_range=(0.0, 255.0),
        contrast_limits=((0.0, 255.0),),
        digest="of no pixels",
        file_signature=None,
    )
    return make_plan(image, find_model(model), ((0.0,), (1.0,)), options, slabs=1)


def megabytes() -> float:
    """What this process holds."""
    return float(psutil.Process().memory_info().rss) / 1e6


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def measure_row(blocks: int, done: int, folder: Path) -> bool:
    """Plan so many blocks and do the last `done` of them. Prints the row; whether the bars are met.

    blocks  rounded down to a square number
    """
    side = BLOCK * math.isqrt(blocks)
    before, begin = megabytes(), time.monotonic()
    plan = make_plan_of(side, folder / "model", TINY_BLOCKS)
    plan_seconds, plan_megabytes = time.monotonic() - begin, megabytes() - before

    array = create_array(folder / "store", "0", plan.probabilities_layout)
    store = BlockStore(
        ArrayWithoutFiles(array.location, array.array, array.axes), folder / "ledger"
    )
    with Ledger(store.ledger, "before") as ledger:
        for block in range(max(0, plan.blocks - done)):
            ledger.add(block, EMPTY)
    begin = time.monotonic()
    is_done = store.done()
    check_seconds = time.monotonic() - begin

    todo = [block for block in range(plan.blocks) if not is_done[block]]
    clock, cpu, grown = run_blocks(todo, store)
    milliseconds = 1e3 * cpu / len(todo)
    say(
        f"{plan.blocks:9,} {plan_seconds:8.2f} {plan_megabytes:9.1f} {check_seconds:8.2f} "
        f"{len(todo):9,} {milliseconds:10.2f} {1e3 * clock / len(todo):10.2f} {grown:10.1f}"
    )
    return (
        plan_seconds < PLAN_SECONDS
        and plan_megabytes < PLAN_MEGABYTES
        and milliseconds < BLOCK_MILLISECONDS
    )


def run_blocks(blocks: list[int], store: BlockStore) -> tuple[float, float, float]:
    """Do blocks of no cost and record them.

    Returns the seconds by the clock, those of this process, and the megabytes that it grew by.
    """
    machines = replace(Machines.for_data(None, 1), threads=4)
    with connect(machines) as pool, Ledger(store.ledger, "scale") as ledger:
        pool.run(EmptyJob("warm up"), range(50), lambda *_: None)
        before, begin, cpu = megabytes(), time.monotonic(), time.process_time()
        pool.run(EmptyJob("count"), blocks, ledger.add)
        return time.monotonic() - begin, time.process_time() - cpu, megabytes() - before


def measure_restart(files: int, folder: Path) -> bool:
    """Seconds until the first new block of a run with so many finished ones, each a file.

    Whether the bar is met.
    """
    side = BLOCK * (math.isqrt(files) + 1)
    plan = make_plan_of(side, folder / "model", TINY_BLOCKS)
    array = create_array(folder / "restart", "0", plan.probabilities_layout)
    store = BlockStore(array, folder / "restart-ledger")
    with Ledger(store.ledger, "before") as ledger:
        for block in range(files):
            file = Path(str(array.shard_file(block)))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"1")
            ledger.add(block, replace(EMPTY, version=version(file)[1]))
    begin = time.monotonic()
    with connect(Machines.for_data(None, 1)) as pool:
        resume(pool, EmptyJob("restart"), store, range(files + 1), "restart")
    seconds = time.monotonic() - begin
    say(f"restart after {files:,} finished blocks: {seconds:.1f} s with the start of a worker")
    return seconds < RESTART_SECONDS


def count_files(folder: Path) -> bool:
    """The files of a large image's result, as its plan counts them; whether the bar is met."""
    result = make_plan_of(100_000, folder / "model", DEFAULT_BLOCKS).result
    say(f"100,000 x 100,000 px: {result.files:,} files, {result.bytes / 1e9:.1f} GB uncompressed")
    return result.files <= MOST_FILES


def measure_all(options: argparse.Namespace) -> bool:
    """All rows and figures; whether every bar is met."""
    say(COLUMNS)
    ok = True
    for blocks in options.blocks:
        # Each row in a process of its own, so that memory is its own.
        row = [sys.executable, "-m", "scripts.benchmark.scale", "--row", str(blocks)]
        row += ["--done", str(options.done)]
        ok &= subprocess.run(row, check=False).returncode == 0  # noqa: S603 - this script itself
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name) / "model", 1)
        ok &= measure_restart(options.files, Path(name))
        return ok & count_files(Path(name))


def measure_one(blocks: int, done: int) -> bool:
    """One row, in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name) / "model", 1)
        return measure_row(blocks, done, Path(name))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark.scale",
        description=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, powers = parser.add_argument, [10**3, 10**4, 10**5, 10**6]
    add("--blocks", type=int, nargs="+", default=powers, help=f"one row for each; {powers}")
    add("--done", type=int, default=2000, help="blocks of a row that are really done; 2000")
    add("--files", type=int, default=10**5, help="finished blocks of the restart; 100000")
    add("--row", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = parse_options()
    all_met = measure_one(options.row, options.done) if options.row else measure_all(options)
    sys.exit(0 if all_met else 1)
