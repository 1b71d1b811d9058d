"""Pixel sizes and channel names, from what the different makers of TIFF files write.

Pure functions on strings and parsed metadata. They return only what is believed: a wrong pixel size
is worse than none, since it silently picks another pyramid level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unet.sources.units import micrometres

RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}  # the tag's inch and centimetre, in micrometres
PRINT_SIZE = 20.0  # pixels above this size (below 1270 dpi) are a printer's or screen's resolution


def from_ome(xml: Mapping[str, Any], image: int) -> tuple[dict[str, float], tuple[str, ...]]:
    """Pixel size and channel names of image number `image` of parsed OME-XML."""
    images = _listed(xml.get("OME", {}).get("Image"))
    if image >= len(images):
        return {}, ()
    pixels = images[image].get("Pixels", {})
    sizes = {}
    for axis in "zyx":
        value = pixels.get(f"PhysicalSize{axis.upper()}")
        unit = micrometres(str(pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm")))
        if isinstance(value, int | float) and unit is not None:
            sizes[axis] = float(value) * unit
    names = tuple(str(c.get("Name", "")) for c in _listed(pixels.get("Channel")))
    return sizes, names if any(names) else ()


def from_imagej(
    metadata: Mapping[str, Any], resolution: tuple[float, float], channels: int
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Pixel size and channel names of an ImageJ file; `resolution` is pixels a unit in x and y.

    A unit of inches is the resolution of a print that ImageJ passed on, and not believed. Labels
    are one a plane, channels first; they name channels if they differ from channel to channel.
    """
    unit = micrometres(metadata.get("unit"))
    sizes = {}
    if unit is not None:
        sizes = {a: unit / r for a, r in zip("xy", resolution, strict=True) if r > 0}
        spacing = metadata.get("spacing")
        if isinstance(spacing, int | float) and spacing > 0:
            sizes["z"] = unit * float(spacing)
    labels = tuple(str(label) for label in _listed(metadata.get("Labels"))[:channels])
    return sizes, labels if channels > 1 and len(set(labels)) == channels else ()


def from_aperio(description: str) -> dict[str, float]:
    """Pixel size from the "MPP = 0.4990" of an Aperio description."""
    found = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
    return dict.fromkeys("yx", float(found.group(1))) if found else {}


def from_resolution(resolution: tuple[float, float], unit: int, maker: bool) -> dict[str, float]:
    """Pixel size from the resolution tags, in pixels a `unit` in x and y.

    maker  whether a scanner wrote them. In other files 72, 96, 300 or 600 dpi are what a program
           writes that knows nothing, so only sizes of less than 20 micrometres are believed.
    """
    if unit not in RESOLUTION_UNITS or min(resolution) <= 0:
        return {}
    sizes = {a: RESOLUTION_UNITS[unit] / r for a, r in zip("xy", resolution, strict=True)}
    return sizes if maker or max(sizes.values()) < PRINT_SIZE else {}


def qptiff_names(descriptions: Sequence[str]) -> tuple[str, ...]:
    """The name of each channel's page of a QPTIFF."""
    found = [re.search(r"<Name>([^<]+)</Name>", text) for text in descriptions]
    return tuple(match.group(1) for match in found if match) if all(found) else ()


def _listed(value: object) -> list[Any]:
    """XML and ImageJ give one element bare, several as a list, none as None."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
