"""Adapter from the rule `train` to `unet.stages.train`."""

from unet.console import report_to
from unet.stages import train
from unet.storage.repairs import write_repairs
from unet.training.config import read_training
from unet.training.trained_model import model_folder, record_file

if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        training = read_training(snakemake.params.training)
        identity = train.run(
            training,
            model_folder(training.name),
            snakemake.threads,
            train.choose_gpus(training, snakemake.resources.gpu),
        )
        write_repairs(record_file(training.name), identity, snakemake.params.repairs)
