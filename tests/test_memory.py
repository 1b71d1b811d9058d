"""What a worker really holds, against what is planned for it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from support import EVERYTHING, GENEROUS

from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.planning.memory import BLOCKS_PER_WORKER, mover_bytes
from unet.planning.options import SplitOptions
from unet.sources.base import SourceSpec
from unet.stages import ingest, predict, split, stitch
from unet.storage.workspace import Workspace

ALONE = Machines(address=None, devices=(), cpus=1, threads=BLOCKS_PER_WORKER)
CASES = {
    "grey": ("yx", (2100, 2100), "uint8", {"width": 8}, {}),
    "rgb in bfloat16": (
        "cyx",
        (3, 2100, 2100),
        "uint8",
        {"width": 8, "in_channels": 3},
        {"precision": "bfloat16"},
    ),
    "5 classes": ("yx", (2100, 2100), "float32", {"width": 4, "classes": 5}, {}),
    "16 channels": ("cyx", (16, 2048, 6144), "uint16", {"width": 1, "in_channels": 16}, {}),
    "3D": ("zyx", (130, 200, 200), "uint16", {"width": 4, "dims": 3}, {}),
}


@contextmanager
def one_worker() -> Iterator[tuple[Machines, Callable[[], int]]]:
    """A worker of its own, and what tells the most bytes that it ever held."""

    def most_held() -> str:  # sent by value: importing this file, a worker would import torch
        with Path("/proc/self/status").open() as status:
            return next(line for line in status if line.startswith("VmHWM:"))

    with connect(ALONE) as workers:

        def held() -> int:
            (said,) = workers.client.run(most_held).values()
            return 1024 * int(said.split()[1])

        yield replace(ALONE, address=workers.client.scheduler.address), held


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_worker_holds_no_more_than_is_planned(case, make_model, tmp_path):
    """In each stage, with blocks of their full size: one worker does them all, three at a time."""
    axes, shape, dtype, network, asked = CASES[case]
    noise = np.random.default_rng(0).random(shape, np.float32)  # which does not compress
    pixels = noise if dtype == "float32" else (noise * np.iinfo(dtype).max).astype(dtype)
    tifffile.imwrite(tmp_path / "image.tif", pixels, tile=(256, 256), photometric="minisblack")
    source = SourceSpec(str(tmp_path / "image.tif"), axes=axes)
    workspace = Workspace(tmp_path / "image")
    with one_worker() as (machines, held):
        ingest.run(source, workspace, machines)
        ingested = held()
    request = replace(SplitOptions(memory=GENEROUS), **asked)
    plan = split.run(workspace, str(make_model(**network).folder), request, 1)
    with one_worker() as (machines, held):
        predict.run(workspace, 0, 1, machines, "cpu")
        predicted = held()
    with one_worker() as (machines, held):
        stitch.run(workspace, EVERYTHING, machines)
        stitched = held()
    block = math.prod(plan.image.block) * len(plan.image.channel_names) * pixels.itemsize
    assert ingested <= mover_bytes(ALONE.threads, block)
    assert predicted <= plan.worker_bytes
    assert stitched <= mover_bytes(ALONE.threads, stitch.largest_block(plan, EVERYTHING))


def test_channels_that_lie_far_apart_are_read_alone(tmp_path):
    """Of a Zarr in place: what lies between them is no part of what a worker may hold."""
    noise = np.random.default_rng(0).integers(0, 1 << 16, (24, 2048, 2048), np.uint16)
    zarr.create_array(tmp_path / "image.zarr", data=noise, chunks=(1, 512, 512))
    source = SourceSpec(str(tmp_path / "image.zarr"), axes="cyx", channels=(0, 23))
    with one_worker() as (machines, held):
        ingest.run(source, Workspace(tmp_path / "image"), machines)
        assert held() <= mover_bytes(ALONE.threads, 2 * noise[0].nbytes)
