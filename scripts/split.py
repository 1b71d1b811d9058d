"""Adapter from the rule `split` to `unet.stages.split`."""

from pathlib import Path

from unet.console import report_to
from unet.planning.options import SplitOptions
from unet.stages import split
from unet.storage.workspace import Workspace

if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        split.run(
            Workspace(Path(snakemake.output[0]).parent, snakemake.params.stores),
            snakemake.params.model,
            SplitOptions(**snakemake.params.options),
            snakemake.params.slabs,
        )
