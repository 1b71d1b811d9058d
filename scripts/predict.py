"""Adapter from the rule `predict` to `unet.stages.predict`."""

from pathlib import Path

from unet.cluster import Machines
from unet.config import scheduler_address
from unet.console import told
from unet.stages import predict
from unet.workspace import Workspace

if __name__ == "__main__":
    with told(snakemake.log[0]):
        slab, slabs = map(int, snakemake.wildcards.scatteritem.split("-of-"))
        device = snakemake.params.device
        address = scheduler_address(snakemake.params.scheduler)
        # Of a cluster that is already there, each worker looks for its own GPU.
        gpus = () if address else predict.choose_devices(device, snakemake.resources.gpu)
        predict.run(
            Workspace(Path(snakemake.output[0]).parents[1], snakemake.params.stores),
            slab - 1,
            slabs,
            Machines.for_network(address, gpus, snakemake.threads, snakemake.params.block_seconds),
            device if address else "gpu" if gpus else "cpu",
        )
