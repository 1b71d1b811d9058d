"""Adapter from the rule `stitch` to `unet.stages.stitch`."""

from pathlib import Path

from unet.config import scheduler_address
from unet.console import report_to
from unet.execution.machines import Machines
from unet.planning.options import StitchOptions
from unet.stages import stitch
from unet.storage.repairs import write_repairs
from unet.storage.workspace import Workspace

if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        workspace = Workspace(Path(snakemake.output[0]).parent, snakemake.params.stores)
        run = stitch.run(
            workspace,
            StitchOptions(**snakemake.params.options),
            Machines.for_data(
                scheduler_address(snakemake.params.scheduler),
                snakemake.threads,
                snakemake.params.block_seconds,
                snakemake.resources.get("mem_mb"),
            ),
        )
        write_repairs(workspace.repairs, run, snakemake.params.repairs)
