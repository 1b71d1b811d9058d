"""Running the stages of one image as the workflow does, or block by block in this process.

And where a run listens.
"""

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import zarr
from numpy.typing import NDArray

from unet.execution.machines import Machines
from unet.model.folder import ModelSpec
from unet.model.normalisation import summarise
from unet.planning.axes import ORDER
from unet.planning.image import IngestedImage
from unet.planning.layout import image_block, image_layout
from unet.planning.options import SplitOptions, StitchOptions
from unet.planning.plan import Plan, make_plan
from unet.sources.base import SourceSpec
from unet.stages import ingest, predict, split, stitch
from unet.stages.predict import PredictJob
from unet.stages.probabilities import create_probabilities, probabilities_array
from unet.storage.store import create_array
from unet.storage.workspace import Workspace

T = TypeVar("T")
GENEROUS = 8 * 10**9
EVERYTHING = StitchOptions()
ONE_CORE = Machines.for_data(None, 1)


def stored(image: NDArray[np.generic], axes: str, folder: Path) -> IngestedImage:
    """Write an image (axes a part of "tczyx" in this order) to a Zarr store."""
    sizes = dict(zip(axes, image.shape, strict=True))
    shape = tuple(sizes.get(axis, 1) for axis in "tzyx")
    channels = sizes.get("c", 1)
    layout = image_layout(axes, shape, channels, str(image.dtype), image_block(shape))
    create_array(folder / "image.ome.zarr", "0", layout)
    zarr.open_array(folder / "image.ome.zarr" / "0", mode="r+")[...] = image
    return IngestedImage(
        store=str(folder / "image.ome.zarr"),
        copied=True,
        array="0",
        axes=axes,
        channels=None,
        shape=shape,
        dtype=str(image.dtype),
        channel_names=tuple(map(str, range(channels))),
        pixel_size={},
        origin={},
        block=None,
        data_range=(0.0, 255.0),
        contrast_limits=((0.0, 255.0),) * channels,
        digest="of the test",
        file_signature=None,
    )


def planned(
    image: NDArray[np.generic], axes: str, model: ModelSpec, folder: Path, **request: object
) -> Plan:
    """The plan of an image in memory, with the statistics of the whole image."""
    ref = stored(image, axes, folder)
    channels = image if "c" not in axes else np.moveaxis(image, axes.index("c"), 0)
    channels = channels if "c" in axes else channels[np.newaxis]
    summaries = summarise(channels, model.normalisation.percentiles)
    offset, scale = model.normalisation.affine(summaries)
    return make_plan(
        image=ref,
        model=model,
        affine=(tuple(offset), tuple(scale)),
        options=replace(SplitOptions(memory=GENEROUS), **request),
        slabs=1,
    )


def predicted_serially(
    plan: Plan, workspace: Workspace, blocks: list[int] | None = None
) -> NDArray[np.float32]:
    """Predict block after block in this process, and read all probabilities (t, c, z, y, x)."""
    store = create_probabilities(plan, workspace)
    do = PredictJob("serial", plan, probabilities_array(plan, workspace), "cpu", threads=2).open()
    for block in range(plan.blocks) if blocks is None else blocks:
        do(block)
    whole = store.array.array[...]
    sizes = iter(whole.shape)
    axes = store.array.axes
    return whole.reshape([next(sizes) if axis in axes else 1 for axis in ORDER])


def run_stages(
    source: SourceSpec,
    model: ModelSpec,
    workspace: Workspace,
    slabs: int = 1,
    choice: StitchOptions = EVERYTHING,
    machines: Machines = ONE_CORE,
    **request: object,
) -> Plan:
    """All four stages on real Dask workers, as the scripts call them."""
    ingest.run(source, workspace, machines)
    plan = split.run(
        workspace, str(model.folder), replace(SplitOptions(memory=GENEROUS), **request), slabs
    )
    for slab in range(slabs):
        predict.run(workspace, slab, slabs, machines, "cpu")
    stitch.run(workspace, choice, machines)
    return plan


def listening(first: psutil.Process | None = None) -> set[tuple[int, str, int]]:
    """What a process (this one) and those that it started listen on: process, address, port."""
    first = first or psutil.Process()
    found = set()
    for process in (first, *first.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it ended since
            found |= {
                (process.pid, connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
    return found


def command_lines() -> set[str]:
    """How the processes that this one started were called, which every user of a machine sees."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found.add(" ".join(process.cmdline()))
    return found


@contextmanager
def watched(look: Callable[[], set[T]]) -> Iterator[set[T]]:
    """All that `look` finds at any moment meanwhile, and did not before."""
    found: set[T] = set()
    before, ended, errors = look(), threading.Event(), []

    def watch() -> None:
        try:
            while not ended.is_set():
                found.update(look() - before)
                time.sleep(0.01)
        except psutil.Error as error:
            errors.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        assert not errors


def assert_loopback_only(found: set[tuple[int, str, int]]) -> None:
    assert found, "nothing listened: this test looked at nothing"
    assert [each for each in found if not ipaddress.ip_address(each[1]).is_loopback] == []
