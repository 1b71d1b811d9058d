"""An image and a model that are made up, and the stages as the rules of the workflow run them.

The image is written tile by tile, so that it may be larger than memory. Its pixels are a pattern
and noise, which zlib makes three quarters as large, not nothing.

torch is imported late: whoever measures the memory of `ingest`, `split` or `stitch` must not hold
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet.execution.machines import Machines
from unet.model.architecture import Architecture
from unet.planning.options import SplitOptions, StitchOptions
from unet.sources.base import SourceSpec
from unet.stages import ingest, split, stitch
from unet.storage.workspace import Workspace

TILE = 512
CLASSES = ["background", "foreground"]


def make_image(side: int, seed: int = 0) -> NDArray[np.uint8]:
    """A square image in memory, (Y, X)."""
    return np.block([list(_row_of_tiles(y, side, seed)) for y in range(0, side, TILE)])


def write_image(path: Path, side: int, compression: str | None = "zlib") -> None:
    """The same image as a TIFF of tiles of 512 x 512; `compression` is a name of tifffile's."""
    import tifffile

    tiles = (tile for y in range(0, side, TILE) for tile in _row_of_tiles(y, side, seed=0))
    tifffile.imwrite(
        path,
        tiles,
        shape=(side, side),
        dtype=np.uint8,
        tile=(TILE, TILE),
        compression=compression,
        photometric="minisblack",
    )


def write_model(folder: Path, width: int) -> None:
    """A model of the 2015 shape with random weights, `width` channels on its first level."""
    import torch

    from unet.network.unet import UNet
    from unet.network.weights import save_model

    torch.manual_seed(0)
    normalisation = {"method": "range", "low": 0, "high": 255}
    description = {"name": folder.name, "classes": CLASSES, "normalisation": normalisation}
    save_model(folder, UNet(Architecture.of(width=width)), description)


def run_ingest(workspace: Workspace, image: Path, cores: int) -> None:
    """As scripts/ingest.py."""
    ingest.run(SourceSpec(str(image)), workspace, Machines.for_data(None, cores))


def run_split(
    workspace: Workspace, model: Path, gigabytes: float, precision: str = "float32"
) -> None:
    """As scripts/split.py, for one slab; a worker may use so many gigabytes."""
    options = SplitOptions(memory=int(gigabytes * 1e9), precision=precision)
    split.run(workspace, str(model), options, slabs=1)


def run_predict(workspace: Workspace, cores: int) -> None:
    """As scripts/predict.py, on the CPU."""
    from unet.stages import predict

    predict.run(workspace, 0, 1, Machines.for_network(None, (), cores), "cpu")


def run_stitch(workspace: Workspace, cores: int) -> None:
    """As scripts/stitch.py."""
    stitch.run(workspace, StitchOptions(), Machines.for_data(None, cores))


def _row_of_tiles(y: int, side: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """The tiles of one row, cut at the image's end."""
    height = min(TILE, side - y)
    rows = 60 * np.sin(np.arange(y, y + height, dtype=np.float32)[:, None] / 23)
    for x in range(0, side, TILE):
        columns = np.sin(np.arange(x, min(x + TILE, side), dtype=np.float32) / 31)
        noise = np.random.default_rng((seed, y, x)).standard_normal(
            (height, columns.size), np.float32
        )
        yield (128 + rows * columns + 2 * noise).astype(np.uint8)
