"""Pixel sizes and channel names, from the metadata that different programs write.

Pure functions on strings and parsed metadata. A value that is probably wrong is left out: a wrong
pixel size is worse than none, since it silently chooses another pyramid level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unet.sources.units import micrometres

RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}  # the tag's inch and centimetre, in micrometres
PRINT_SIZE = 20.0  # larger pixels (below 1270 dpi) have the resolution of a printer or screen


def from_ome(xml: Mapping[str, Any], image: int) -> tuple[dict[str, float], tuple[str, ...]]:
    """Pixel size and channel names of image number `image` of parsed OME-XML."""
    images = _as_list(xml.get("OME", {}).get("Image"))
    if image >= len(images):
        return {}, ()
    pixels = images[image].get("Pixels", {})
    sizes = {}
    for axis in "zyx":
        value = pixels.get(f"PhysicalSize{axis.upper()}")
        unit = micrometres(str(pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm")))
        if isinstance(value, int | float) and unit is not None:
            sizes[axis] = float(value) * unit
    names = tuple(str(c.get("Name", "")) for c in _as_list(pixels.get("Channel")))
    return sizes, names if any(names) else ()


def from_imagej(
    metadata: Mapping[str, Any], resolution: tuple[float, float], channels: int
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Pixel size and channel names of an ImageJ file; `resolution` is pixels per unit in x and y.

    A resolution in inches is that of a print, so it is left out. There is one label per plane, and
    channels vary first; labels that differ from channel to channel are the names of the channels.
    """
    unit = micrometres(metadata.get("unit"))
    sizes = {}
    if unit is not None:
        sizes = {a: unit / r for a, r in zip("xy", resolution, strict=True) if r > 0}
        spacing = metadata.get("spacing")
        if isinstance(spacing, int | float) and spacing > 0:
            sizes["z"] = unit * float(spacing)
    labels = tuple(str(label) for label in _as_list(metadata.get("Labels"))[:channels])
    return sizes, labels if channels > 1 and len(set(labels)) == channels else ()


def from_aperio(description: str) -> dict[str, float]:
    """Pixel size from the "MPP = 0.4990" of an Aperio description."""
    match = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
    return dict.fromkeys("yx", float(match.group(1))) if match else {}


def from_resolution(resolution: tuple[float, float], unit: int, scanner: bool) -> dict[str, float]:
    """Pixel size from the resolution tags, in pixels per `unit` in x and y.

    scanner  whether a scanner wrote them. Other programs often write 72, 96, 300 or 600 dpi without
             knowing the size, so only pixels below PRINT_SIZE micrometres are used.
    """
    if unit not in RESOLUTION_UNITS or min(resolution) <= 0:
        return {}
    sizes = {a: RESOLUTION_UNITS[unit] / r for a, r in zip("xy", resolution, strict=True)}
    return sizes if scanner or max(sizes.values()) < PRINT_SIZE else {}


def qptiff_names(descriptions: Sequence[str]) -> tuple[str, ...]:
    """The name of each channel's page of a QPTIFF."""
    matches = [re.search(r"<Name>([^<]+)</Name>", text) for text in descriptions]
    return tuple(match.group(1) for match in matches if match) if all(matches) else ()


def _as_list(value: object) -> list[Any]:
    """XML and ImageJ have one element without a list, several as a list, none as None."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
