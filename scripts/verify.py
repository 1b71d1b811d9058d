"""Adapter from the rule `prove` to `unet.stages.verify`."""

from pathlib import Path

from unet.config import scheduler_address
from unet.console import report_to
from unet.execution.pool import Machines
from unet.sources.base import SourceSpec
from unet.stages import predict, stitch, verify
from unet.storage.workspace import Workspace

if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        params, resources = snakemake.params, snakemake.resources
        address = scheduler_address(params.scheduler)
        limits = (snakemake.threads, params.block_seconds, resources.get("mem_mb"))
        network, device = predict.crew(address, params.device, resources.gpu, *limits)
        verify.run(
            Workspace(Path(snakemake.output[0]).parent, params.stores),
            verify.Asked(
                SourceSpec(**params.source),
                stitch.Choice(params.threshold, params.image),
                **params.proof,
            ),
            verify.Crews(Machines.for_data(address, *limits), network, device),
        )
