"""Adapter from the rule `verify_image` to `unet.stages.verify`."""

from pathlib import Path

from unet.config import scheduler_address
from unet.console import report_to
from unet.execution.machines import Machines
from unet.planning.options import StitchOptions
from unet.sources.base import SourceSpec
from unet.stages import predict, verify
from unet.storage.workspace import Workspace

if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        params, resources = snakemake.params, snakemake.resources
        address = scheduler_address(params.scheduler)
        limits = (snakemake.threads, params.block_seconds, resources.get("mem_mb"))
        network, device = predict.network_machines(address, params.device, resources.gpu, *limits)
        verify.run(
            Workspace(Path(snakemake.output[0]).parent, params.stores),
            verify.VerifyOptions(
                SourceSpec(**params.source),
                StitchOptions(**params.stitch),
                **params.sample,
            ),
            verify.StageMachines(Machines.for_data(address, *limits), network, device),
        )
