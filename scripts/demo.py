"""Say where the masks of the demo are, how long each stage took, and how good the stack's is."""

import csv
import logging
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet.console import report_to
from unet.evaluation.metrics import PixelCounts
from unet.planning.geometry import Box
from unet.sources import open_source
from unet.sources.base import SourceSpec
from unet.stages.stitch import StitchManifest
from unet.storage.manifest import read_manifest

log = logging.getLogger("unet.demo")


def seconds(image: str) -> dict[str, float]:
    """How long each job of an image took, by the name of its benchmark."""
    seconds_by_job = {}
    for table in sorted(Path("benchmarks", image).glob("*.tsv")):
        with table.open(newline="") as file:
            seconds_by_job[table.stem] = float(next(csv.DictReader(file, delimiter="\t"))["s"])
    return seconds_by_job


def foreground(spec: SourceSpec) -> NDArray[np.bool_]:
    """Where a stack (Z, Y, X) is not 0."""
    with closing(open_source(spec)) as source:
        _, _, *zyx = source.shape
        return source.read(Box((0, 0, 0, 0), (1, *zyx)))[0, 0] != 0


if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        for manifest in map(Path, snakemake.input.stitched):
            name, stitch = manifest.parent.name, read_manifest(manifest, StitchManifest)
            mask = stitch.mask
            log.info("%s: the mask is %s", name, mask)
            command = f".venv/bin/python scripts/picture.py {stitch.result} {name}.png"
            log.info("%s: to see a part of it: %s", name, command)
            times = ", ".join(f"{stage} {s:.0f} s" for stage, s in seconds(name).items())
            log.info("%s: %s", name, times)
            if name == "stack":
                labels = foreground(SourceSpec(snakemake.params.labels, axes="zyx"))
                log.info(
                    "%s: Dice against the labels %.3f (its model saw planes 0 to 29 of 60)",
                    name,
                    PixelCounts.of(foreground(SourceSpec(mask)), labels).scores()["dice"],
                )
