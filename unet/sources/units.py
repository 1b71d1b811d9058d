"""Lengths as files spell them, in micrometres: the one unit of the project."""

from __future__ import annotations

# micrometres in one unit, as OME-XML, OME-Zarr, ImageJ and people spell it
MICROMETRES = {
    "pm": 1e-6, "picometer": 1e-6,
    "å": 1e-4, "angstrom": 1e-4,
    "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3,
    "µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3,
    "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4,
    "m": 1e6, "meter": 1e6, "metre": 1e6,
}  # fmt: skip


def micrometres(unit: str | None) -> float | None:
    """Micrometres in one `unit`; None for a unit that is no length, such as "pixel"."""
    if not unit:
        return None
    text = unit.strip().replace("\\u00b5", "µ").replace("\\u00B5", "µ").replace("μ", "µ")
    return MICROMETRES.get(text.lower())
