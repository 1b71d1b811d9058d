"""OME-Zarr 0.5 metadata, as plain dictionaries (https://ngff.openmicroscopy.org/0.5/).

The only module that knows the format's names, so that another version is another module.
"""

from __future__ import annotations

import colorsys
from typing import Any

from unet.planning.axes import GRID, Sizes

VERSION = "0.5"
KINDS = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
GENERATOR = {"description": "averages of 2 (images), most frequent of 2 (labels), on each axis"}


def multiscales(
    name: str,
    axes: str,
    pixel_size: dict[str, float],
    levels: list[Sizes],
    kind: str,
    origin: dict[str, float] | None = None,
) -> dict[str, Any]:
    """The `ome` attributes of a pyramid.

    axes        a part of "tczyx" in this order
    pixel_size  micrometres by axis; an axis without one counts pixels
    levels      for each level, by how much it is smaller than level 0 on (t, z, y, x)
    kind        how smaller levels were made: "mean" or "mode"
    origin      where the first pixel lies by axis, in pixels; None for 0
    """
    base = [pixel_size.get(axis, 1.0) if axis in "zyx" else 1.0 for axis in axes]
    first = [(origin or {}).get(axis, 0.0) for axis in axes]
    datasets = []
    for level, factors in enumerate(levels):
        by_axis = dict(zip(GRID, factors, strict=True))
        own = [by_axis.get(axis, 1) for axis in axes]
        transformations = _transformations(base, first, own)
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    axis_entries = [_axis(axis, axis in pixel_size) for axis in axes]
    return {
        "ome": {
            "version": VERSION,
            "multiscales": [
                {
                    "name": name,
                    "axes": axis_entries,
                    "datasets": datasets,
                    "type": kind,
                    "metadata": GENERATOR,
                }
            ],
        }
    }


def add_channels(
    attributes: dict[str, Any],
    names: tuple[str, ...],
    data_range: tuple[float, float],
    contrast_limits: tuple[tuple[float, float], ...] = (),
) -> dict[str, Any]:
    """Add how a viewer shows the channels: names, colours and values.

    data_range       the smallest and the largest value
    contrast_limits  of each channel what is black and what is white; none for the data range
    """
    rgb = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
    low, high = data_range
    channels = [
        {
            "label": name,
            "color": rgb.get(name.lower(), "FFFFFF" if len(names) == 1 else _hex(i, len(names))),
            "active": True,
            "window": {"min": low, "max": high, "start": start, "end": end},
        }
        for i, (name, (start, end)) in enumerate(
            zip(names, contrast_limits or (data_range,) * len(names), strict=True)
        )
    ]
    return {"ome": {**attributes["ome"], "omero": {"channels": channels}}}


def add_label(attributes: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """Add what the values of a mask mean: the names and colours of the classes but the first."""
    values = range(1, len(classes))
    label = {
        "colors": [
            {"label-value": value, "rgba": [*_rgb(value - 1, len(classes) - 1), 255]}
            for value in values
        ],
        "properties": [{"label-value": value, "class": classes[value]} for value in values],
        "source": {"image": "../../"},
    }
    return {"ome": {**attributes["ome"], "image-label": label}}


def label_list(names: list[str]) -> dict[str, Any]:
    """The attributes of the group that holds the labels."""
    return {"ome": {"version": VERSION, "labels": names}}


def _transformations(
    base: list[float], first: list[float], factors: list[int]
) -> list[dict[str, Any]]:
    """Scale and translation of a level: sizes and the first pixel of level 0, and its factors."""
    scale = [size * factor for size, factor in zip(base, factors, strict=True)]
    # A level's first pixel has its centre between the pixels that it stands for.
    shift = [
        size * (start + (factor - 1) / 2)
        for size, start, factor in zip(base, first, factors, strict=True)
    ]
    transformations: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    if any(shift):
        transformations.append({"type": "translation", "translation": shift})
    return transformations


def _axis(axis: str, has_size: bool) -> dict[str, str]:
    entry = {"name": axis, "type": KINDS[axis]}
    if axis in "zyx" and has_size:
        entry["unit"] = "micrometer"
    return entry


def _rgb(index: int, of: int) -> list[int]:
    return [round(255 * v) for v in colorsys.hsv_to_rgb(index / of + 1 / 7, 0.8, 1.0)]


def _hex(index: int, of: int) -> str:
    return "".join(f"{value:02X}" for value in _rgb(index, of))
