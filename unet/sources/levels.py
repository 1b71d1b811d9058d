"""Which level of a pyramid is read, and how large its pixels are."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from unet.errors import SourceError
from unet.sources.base import SourceSpec

logger = logging.getLogger(__name__)


def choose_level(
    spec: SourceSpec, base: dict[str, float], factors: Sequence[dict[str, float]]
) -> tuple[int, dict[str, float]]:
    """The level that the spec selects, and its pixel size in micrometres by axis.

    base     pixel size of level 0 in the file; sizes of the spec replace it
    factors  of each level, by axis: how many pixels of level 0 one of its pixels spans

    Raises SourceError where the file has no such level, or no pixel size to choose it by.
    """
    base = {a: s for a, s in (base | (spec.pixel_size or {})).items() if s > 0 and math.isfinite(s)}
    if spec.level is not None and spec.level_pixel_size is not None:
        raise SourceError(
            f"{spec.path}: level and level_pixel_size are both set, and only one can choose the "
            "level. Remove one of them from the configuration."
        )
    if spec.level_pixel_size is not None:
        level = _nearest_level(spec, spec.level_pixel_size, base, factors)
    else:
        level = spec.level or 0
    if not 0 <= level < len(factors):
        raise SourceError(
            f"{spec.path} has no level {level}: it has {len(factors)}, counted from 0, the largest."
            " Choose one of these, or level_pixel_size."
        )
    return level, {a: size * factors[level].get(a, 1.0) for a, size in base.items()}


def only_level(spec: SourceSpec) -> dict[str, float]:
    """The pixel size of an image without levels. Raises SourceError if the spec selects another."""
    _, pixel_size = choose_level(spec, {}, [{}])
    return pixel_size


def level_factor(full: int, reduced: int) -> float:
    """How many pixels of `full` one of `reduced` spans: whole where rounding explains the rest."""
    ratio = full / max(reduced, 1)
    for whole in (2 ** round(math.log2(ratio)), round(ratio)) if ratio >= 1 else ():
        if reduced in (full // whole, -(-full // whole)):
            return float(whole)
    return ratio


def _nearest_level(
    spec: SourceSpec,
    pixel_size: float,
    base: dict[str, float],
    factors: Sequence[dict[str, float]],
) -> int:
    if "x" not in base:
        raise SourceError(
            f"{spec.path} does not say how large its pixels are, so no level can be chosen by "
            f"level_pixel_size {pixel_size}. Set pixel_size (of level 0) or level in the "
            f"configuration."
        )
    sizes = [base["x"] * factor.get("x", 1.0) for factor in factors]
    level = min(range(len(sizes)), key=lambda i: abs(sizes[i] - pixel_size))
    if not pixel_size / 2 <= sizes[level] <= pixel_size * 2:
        logger.warning(
            "%s has no level near %g micrometres per pixel; level %d with %g is used.",
            spec.path, pixel_size, level, sizes[level],
        )  # fmt: skip
    return level
