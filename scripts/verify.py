"""Adapter from the rule `prove` to `unet.stages.verify`."""

from pathlib import Path

from unet.cluster import Machines
from unet.config import scheduler_address
from unet.console import told
from unet.sources.base import SourceSpec
from unet.stages import predict, stitch, verify
from unet.workspace import Workspace

if __name__ == "__main__":
    with told(snakemake.log[0]):
        params = snakemake.params
        address = scheduler_address(params.scheduler)
        # Of a cluster that is already there, each worker looks for its own GPU.
        gpus = () if address else predict.choose_devices(params.device, snakemake.resources.gpu)
        choice = stitch.Choice(params.threshold, params.image)
        verify.run(
            Workspace(Path(snakemake.output[0]).parent, params.stores),
            verify.Asked(SourceSpec(**params.source), choice, **params.proof),
            verify.Crews(
                Machines.for_data(address, snakemake.threads, params.block_seconds),
                Machines.for_network(address, gpus, snakemake.threads, params.block_seconds),
                params.device if address else "gpu" if gpus else "cpu",
            ),
        )
