"""Adapter from the rule `train` to `unet.stages.train`."""

from pathlib import Path

from unet.console import report_to
from unet.stages import train
from unet.training.config import read_training

if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        training = read_training(snakemake.params.training)
        train.run(
            training,
            Path(snakemake.output.model).parent,
            snakemake.threads,
            train.choose_gpus(training, snakemake.resources.gpu),
        )
