"""Learning curves and validation images, drawn: an SVG and a PNG.

Why without a plotting library: the curves are a few axes and lines, and drawing them as text takes
less than 60 lines here. matplotlib would add 75 MB to each installation, for one file of a
training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]

WIDTH, HEIGHT, MARGIN = 640, 220, 48
TICKS = 5
COLOURS = ("#1f6fb4", "#c8501e", "#2f8a3c", "#7b4ea3", "#8a6a2f", "#4a4a4a")
FALSE_POSITIVE, FALSE_NEGATIVE = (230, 60, 40), (50, 110, 240)  # red, blue
GAP = 6  # pixels between pictures
LARGEST_SIDE = 256

Picture = NDArray[np.uint8]


def draw_curves(rows: Sequence[Row], title: str) -> str:
    """The learning curves as an SVG: one panel each for loss, Dice and pixel error.

    rows  with `step`, `seconds` and any other values; names of one panel share what is before ":"
    """
    panels: dict[str, list[str]] = {}
    for name in rows[-1]:
        if name not in ("step", "seconds"):
            panels.setdefault(name.split(":")[0], []).append(name)
    minutes = [row["seconds"] / 60 for row in rows]
    height = HEIGHT * len(panels) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="18" font-size="13">{escape(title)}</text>',
    ]
    for number, (panel, names) in enumerate(panels.items()):
        lines = {name: [row[name] for row in rows] for name in names}
        parts += _panel(panel, minutes, lines, 30 + number * HEIGHT)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    panel: str, minutes: list[float], lines: dict[str, list[float]], top: int
) -> Iterator[str]:
    """One panel: axes with ticks, a line for each name, and the names."""
    left, right = MARGIN, WIDTH - 150
    upper, lower = top + 12, top + HEIGHT - 34
    values = [value for line in lines.values() for value in line if math.isfinite(value)]
    low, high = min(values), max(values)
    span, longest = (high - low) or 1.0, max(minutes) or 1.0

    def across(minute: float) -> float:
        return left + (right - left) * minute / longest

    def up(value: float) -> float:
        return lower - (lower - upper) * (value - low) / span

    yield f'<path d="M{left} {upper}V{lower}H{right}" fill="none" stroke="#888"/>'
    for tick in range(TICKS):
        value, minute = low + span * tick / (TICKS - 1), longest * tick / (TICKS - 1)
        yield f'<text x="{left - 4}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>'
        yield (
            f'<text x="{across(minute):.1f}" y="{lower + 14}" text-anchor="middle">'
            f"{minute:.1f}</text>"
        )
    yield f'<text x="{(left + right) // 2}" y="{lower + 28}" text-anchor="middle">minutes</text>'
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(
            f"{across(m):.1f},{up(v):.1f}" for m, v in zip(minutes, line, strict=True)
        )
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        label = f"{panel} {name.partition(':')[2]}".strip()
        height = upper + 12 + 15 * number
        yield f'<text x="{right + 8}" y="{height}" fill="{colour}">{escape(label)}</text>'


def encode_page(rows: Sequence[Picture]) -> bytes:
    """Rows of pictures (Y, X, 3), one under the other, as a PNG."""
    width = max(row.shape[1] for row in rows)
    strips = []
    for row in rows:
        strip = np.full((row.shape[0] + GAP, width, 3), 255, np.uint8)
        strip[: row.shape[0], : row.shape[1]] = row
        strips.append(strip)
    return bytes(imagecodecs.png_encode(np.concatenate(strips)))


def draw_comparison(
    pixels: NDArray[Any], prediction: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> Picture:
    """Image, mask and errors side by side: false positives are red, false negatives are blue.

    pixels  (C, Y, X), of any scale; masks (Y, X)
    """
    part = tuple(slice(0, min(side, LARGEST_SIDE)) for side in prediction.shape)
    prediction, truth = prediction[part], truth[part]
    errors = np.repeat((prediction & truth)[..., None] * np.uint8(200), 3, axis=-1)
    errors[prediction & ~truth] = FALSE_POSITIVE
    errors[truth & ~prediction] = FALSE_NEGATIVE
    image = image_to_rgb(pixels[(slice(None), *part)])
    return join_panels([image, mask_to_rgb(prediction), errors])


def image_to_rgb(pixels: NDArray[Any]) -> Picture:
    """Pixels (C, Y, X) as (Y, X, 3): of three channels in colour, else the first in grey.

    Colours of 8 bits stay as they are. Other values are stretched between two percentiles.
    """
    rgb = np.moveaxis(pixels if len(pixels) == 3 else pixels[:1], 0, -1)
    if rgb.dtype != np.uint8 or rgb.shape[-1] == 1:
        low, high = np.percentile(rgb, (0.5, 99.8))
        rgb = np.clip((rgb - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    return np.broadcast_to(rgb, (*rgb.shape[:2], 3))


def mask_to_rgb(mask: NDArray[np.bool_]) -> Picture:
    """A mask (Y, X), white on black."""
    return np.repeat(mask[..., np.newaxis] * np.uint8(255), 3, axis=-1)


def join_panels(panels: Sequence[Picture], gap: int = GAP) -> Picture:
    """Pictures of equal height, from left to right, `gap` pixels apart."""
    space = np.full((panels[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (space, panel)]
    return np.concatenate(parts[1:], axis=1)
