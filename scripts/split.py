"""Adapter from the rule `split` to `unet.stages.split`."""

from pathlib import Path

from unet.console import told
from unet.plan import Request
from unet.stages import split
from unet.workspace import Workspace

if __name__ == "__main__":
    with told(snakemake.log[0]):
        split.run(
            Workspace(Path(snakemake.output[0]).parent, snakemake.params.stores),
            snakemake.params.model,
            Request(**snakemake.params.request),
            snakemake.params.slabs,
        )
