"""What the tests of the readers share: images, their pixels as (t, c, z, y, x), and equality."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unet.planning.axes import ORDER
from unet.planning.geometry import Box
from unet.sources import open_source
from unet.sources.base import Source, SourceSpec

DATA = Path(__file__).parents[2] / "shared" / "data"
RNG = np.random.default_rng(0)
RGB = ("red", "green", "blue")


def noise(*shape: int, dtype: str = "uint8") -> Any:
    return RNG.integers(0, 256, shape).astype(dtype)


def smooth(height: int, width: int) -> Any:
    """RGB that JPEG keeps nearly as it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 2, x * 2, y + x], axis=-1).clip(0, 255).astype("uint8")


def as_5d(image: Any, axes: str) -> Any:
    """`image` on axes of "tczyxs" as (t, c, z, y, x), by numpy alone."""
    axes = axes if "c" in axes else axes.replace("s", "c")
    order = [axes.index(a) for a in "tcszyx" if a in axes]
    image = image.transpose(order)
    if "s" in axes:
        at = [a for a in "tcszyx" if a in axes].index("c")
        image = image.reshape(*image.shape[:at], -1, *image.shape[at + 2 :])
    return image[tuple(slice(None) if a in axes else None for a in ORDER)]


def whole(source: Source) -> Any:
    return source.read(Box((0, 0, 0, 0), (source.shape[0], *source.shape[2:])))


def random_boxes(shape: tuple[int, ...], count: int = 12) -> list[Box]:
    boxes = []
    for _ in range(count):
        ends = [sorted(RNG.choice(n + 1, 2, replace=False)) for n in (shape[0], *shape[2:])]
        boxes.append(Box(tuple(int(a) for a, _ in ends), tuple(int(b) for _, b in ends)))
    return boxes


def assert_reads(spec: SourceSpec, expected: Any, boxes: int = 12) -> Source:
    """The source has the shape, dtype and pixels of `expected`, in any box."""
    source = open_source(pickle.loads(pickle.dumps(spec)))
    assert source.shape == expected.shape
    assert source.dtype == expected.dtype
    assert len(source.chunks) == 5
    assert all(c >= 1 for c in source.chunks)
    assert len(source.channel_names) == expected.shape[1]
    np.testing.assert_array_equal(whole(source), expected)
    for box in random_boxes(source.shape, boxes):
        t, z, y, x = box.slices
        read = source.read(box)
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, expected[t, :, z, y, x])
    source.close()
    return source


def opened(path: Path | str, **options: Any) -> Source:
    source = open_source(SourceSpec(str(path), **options))
    source.close()
    return source


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real image {name} is not here")
    return path


def write_ome_zarr(path: Path, version: int, levels: list[Any], axes: str) -> None:
    """OME-Zarr 0.4 (Zarr v2) or 0.5 (Zarr v3), with y and x halved from level to level."""
    group = zarr.create_group(path, zarr_format=version)
    kinds = {"t": "time", "c": "channel"}
    units = {"z": "micrometer", "y": "nanometer", "x": "nanometer"}
    described = [
        {"name": a, "type": kinds.get(a, "space")} | ({"unit": units[a]} if a in units else {})
        for a in axes
    ]
    datasets = []
    for number, level in enumerate(levels):
        group.create_array(f"s{number}", data=level, chunks=(1,) * (level.ndim - 2) + (16, 16))
        sizes = {"z": 2.0, "y": 300.0 * 2**number, "x": 250.0 * 2**number}
        scale = {"type": "scale", "scale": [sizes.get(a, 1.0) for a in axes]}
        datasets.append({"path": f"s{number}", "coordinateTransformations": [scale]})
    metadata = {
        "multiscales": [{"axes": described, "datasets": datasets, "version": "0.4"}],
        "omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]},
    }
    group.attrs.update(metadata if version == 2 else {"ome": metadata | {"version": "0.5"}})
