"""Adapter from the rule `predict` to `unet.stages.predict`."""

from pathlib import Path

from unet.config import scheduler_address
from unet.console import report_to
from unet.stages import predict
from unet.storage.workspace import Workspace

if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        slab, slabs = map(int, snakemake.wildcards.scatteritem.split("-of-"))
        machines, device = predict.network_machines(
            scheduler_address(snakemake.params.scheduler),
            snakemake.params.device,
            snakemake.resources.gpu,
            snakemake.threads,
            snakemake.params.block_seconds,
            snakemake.resources.get("mem_mb"),
        )
        workspace = Workspace(Path(snakemake.output[0]).parents[1], snakemake.params.stores)
        predict.run(workspace, slab - 1, slabs, machines, device)
