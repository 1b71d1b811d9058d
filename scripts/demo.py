"""Say where the masks of the demo are, how long each stage took, and how good the stack's is."""

import csv
import logging
from pathlib import Path

import numpy as np
import tifffile
import zarr

from unet.console import told
from unet.manifest import read_manifest
from unet.stages.stitch import Stitched

log = logging.getLogger("unet.demo")


def seconds(image: str) -> dict[str, float]:
    """How long each job of an image took, by the name of its benchmark."""
    found = {}
    for table in sorted(Path("benchmarks", image).glob("*.tsv")):
        with table.open(newline="") as file:
            found[table.stem] = float(next(csv.DictReader(file, delimiter="\t"))["s"])
    return found


def dice(mask: np.ndarray, labels: np.ndarray) -> float:
    """Twice the overlap over the sum of both areas (Dice 1945)."""
    return float(2 * (mask & labels).sum() / (mask.sum() + labels.sum()))


if __name__ == "__main__":
    with told(snakemake.log[0]):
        for manifest in map(Path, snakemake.input.stitched):
            name = manifest.parent.name
            mask = read_manifest(manifest, Stitched).mask
            log.info("%s: the mask is %s", name, mask)
            times = ", ".join(f"{stage} {s:.0f} s" for stage, s in seconds(name).items())
            log.info("%s: %s", name, times)
            if name == "stack":
                found = zarr.open_array(Path(mask) / "0", mode="r")[:] > 0
                labels = tifffile.imread(snakemake.input.labels) > 0
                log.info(
                    "%s: Dice against the labels %.3f (its model saw 22 of the 60 planes)",
                    name,
                    dice(found, labels),
                )
