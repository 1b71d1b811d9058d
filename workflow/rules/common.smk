import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from snakemake.exceptions import WorkflowError

from unet.config import read_config, scheduler_address
from unet.errors import UserError
from unet.execution.site import refuse_broken_settings
from unet.stages import dependencies
from unet.stages.places import refuse_clashes
from unet.training.config import read_training

VERSION = version("unet-stitch")


def checked_config():
    schema = Path(workflow.source_path("../schemas/config.schema.yaml"))
    try:
        refuse_broken_settings()
        return read_config(config, schema, rule_outputs=DOWNLOADS)
    except UserError as error:
        raise WorkflowError(f"The configuration is wrong. {error}") from None


def checked_training():
    try:
        return read_training(config["train"], rule_outputs=DOWNLOADS)
    except UserError as error:
        raise WorkflowError(f"The configuration is wrong. {error}") from None


def check_places():
    try:
        refuse_clashes(CONFIG, TRAINING, rule_outputs=DOWNLOADS)
    except UserError as error:
        raise WorkflowError(f"The configuration is wrong. {error}") from None


CONFIG = checked_config()
TRAINING = checked_training() if config.get("train") else None
check_places()
TRAINING_NAME = TRAINING.name if TRAINING else "none"


def files_of(path):
    """What a rule makes of an image, which is all that a rule may wait for; see `dependencies`."""
    return [receipt_of(path)] if path in DOWNLOADS else []


def signature_of(path):
    return dependencies.image_signature(path, DOWNLOADS)


def source_of(wildcards):
    return files_of(CONFIG.images[wildcards.image].source.path)


def image_signature(wildcards):
    return signature_of(CONFIG.images[wildcards.image].source.path)


def source_spec(wildcards):
    return asdict(CONFIG.images[wildcards.image].source)


def model_of(wildcards):
    return CONFIG.images[wildcards.image].model


def model_signature(wildcards):
    return dependencies.model_signature(model_of(wildcards))


def result_repairs(wildcards):
    folder = f"results/{wildcards.image}"
    slabs = gather.slab(f"{folder}/predict/{{scatteritem}}.json")
    return dependencies.result_repairs(Path(folder), CONFIG.stores, tuple(slabs))


def train_files(wildcards):
    """What rules make of the labelled images; of each once."""
    if TRAINING is None:
        raise WorkflowError(
            "There is nothing to train: the configuration has no section `train`. Name one that "
            "has, such as --configfile config/train.yaml."
        )
    return list(
        dict.fromkeys(file for path in TRAINING.paths for file in files_of(path))
    )


def train_signatures(wildcards):
    return [signature_of(path) for path in TRAINING.paths] if TRAINING else []


def train_starts(wildcards):
    return dependencies.start_signatures(TRAINING) if TRAINING else []


def train_repairs(wildcards):
    return dependencies.training_repairs(TRAINING_NAME)


def evaluated_files(wildcards):
    if not CONFIG.evaluate:
        raise WorkflowError(
            "There is nothing to evaluate: the configuration has no section `evaluate`, which "
            "names the labels of its images. Add one; config/README.md describes it."
        )
    labels = [
        file for path in dependencies.label_paths(CONFIG) for file in files_of(path)
    ]
    return expand("results/{item.name}/stitch.json", item=CONFIG.evaluate) + labels


def label_signatures(wildcards):
    return list(map(signature_of, dependencies.label_paths(CONFIG)))


def now(wildcards):
    """Never the same, so that verify always runs: an image may have been damaged since."""
    return time.time_ns()


def machine_cores():
    """All cores of a workstation; a cluster's profile sets the threads of each rule.

    With workers elsewhere a stage only hands out blocks, so many stages can run at once.
    """
    if scheduler_address(CONFIG.scheduler):
        return 1
    return getattr(workflow.resource_settings, "cores", None) or 8
