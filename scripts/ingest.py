"""Adapter from the rule `ingest` to `unet.stages.ingest`."""

from pathlib import Path

from unet.cluster import Machines
from unet.config import scheduler_address
from unet.console import told
from unet.sources.base import SourceSpec
from unet.stages import ingest
from unet.workspace import Workspace

if __name__ == "__main__":
    with told(snakemake.log[0]):
        ingest.run(
            SourceSpec(**snakemake.params.source),
            Workspace(Path(snakemake.output[0]).parent, snakemake.params.stores),
            Machines.for_data(
                scheduler_address(snakemake.params.scheduler),
                snakemake.threads,
                snakemake.params.block_seconds,
                snakemake.resources.get("mem_mb"),
            ),
            snakemake.params.model,
        )
