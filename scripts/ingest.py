"""Adapter from the rule `ingest` to `unet.stages.ingest`."""

from pathlib import Path

from unet.config import scheduler_address
from unet.console import report_to
from unet.execution.machines import Machines
from unet.sources.base import SourceSpec
from unet.stages import ingest
from unet.storage.workspace import Workspace

if __name__ == "__main__":
    with report_to(snakemake.log[0]):
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
