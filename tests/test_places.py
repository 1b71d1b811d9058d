"""A run never writes on, in or around what it reads; and what only lies beside is no clash."""

from pathlib import Path

import pytest
import tifffile
import zarr
from conftest import REPOSITORY, files_in, make_tiny_model, picture
from hypothesis import assume, given
from hypothesis import strategies as st

from unet.config import read_config
from unet.errors import ConfigError
from unet.stages.dependencies import read_model
from unet.stages.places import Destination, Input, find_clash, find_meeting, refuse_clashes
from unet.training.config import read_training

SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"

# --- The pure functions --------------------------------------------------------------------------

PARTS = st.lists(st.sampled_from("ab"), max_size=4).map(lambda names: ("/", *names))
INPUTS = st.lists(PARTS.map(lambda parts: Input(parts, "")), max_size=4)
DESTINATIONS = st.lists(
    st.builds(Destination, PARTS, st.just(""), st.just(""), st.sampled_from("xyz")), max_size=4
)


def meet(one, other) -> bool:
    a, b = Path(*one.parts), Path(*other.parts)
    return a.is_relative_to(b) or b.is_relative_to(a)


@given(INPUTS, DESTINATIONS)
def test_a_clash_is_found_exactly_where_there_is_one(inputs, destinations):
    clashes = [(i, d) for i in inputs for d in destinations if meet(i, d)]
    found = find_clash(inputs, destinations)
    assert (found is None) == (not clashes)
    assert found is None or meet(*found)


@given(DESTINATIONS)
def test_two_destinations_meet_exactly_where_two_owners_do(destinations):
    pairs = [
        (one, other)
        for one in destinations
        for other in destinations
        if one.owner != other.owner and meet(one, other)
    ]
    found = find_meeting(destinations)
    assert (found is None) == (not pairs)
    assert found is None or (found[0].owner != found[1].owner and meet(*found))


# --- Configurations of a project -----------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with an image of each kind, a model, labels and links; it is the working folder."""
    folder = tmp_path / "project"
    (folder / "data" / "scans").mkdir(parents=True)
    (folder / "raw").mkdir()
    (tmp_path / "disk").mkdir()
    for name in ("image.tif", "data/raw.tif", "data/labels.tif", "data/scans/z_0.tif"):
        tifffile.imwrite(folder / name, picture(20, 30))
    group = zarr.open_group(folder / "raw" / "b.ome.zarr", mode="w")
    group.create_array("0", data=picture(20, 30))
    for name in ("model", "start"):
        make_tiny_model(folder / name)
    (folder / "link").symlink_to("data")
    monkeypatch.chdir(folder)
    read_model.cache_clear()  # of the folder of another test
    return folder


def check(images, stores=None, labels=None, train=None):
    """Read a configuration of images, given as name: path or name: (path, model), and check it."""
    items = []
    for name, item in images.items():
        path, model = item if isinstance(item, tuple) else (item, "./model")
        items.append({"name": name, "path": path, "model": model})
    raw = {"images": items} | ({"stores": stores} if stores else {})
    if labels:
        raw["evaluate"] = [{"name": next(iter(images)), "label": labels}]
    refuse_clashes(read_config(raw, SCHEMA), read_training(train) if train else None)


def training(name="tiny", image="data/raw.tif", label="data/labels.tif", **more):
    images = [{"image": image, "label": label}]
    return {"name": name, "classes": ["background", "nucleus"], "images": images, **more}


def make_trained(project):
    return make_tiny_model(project / "models" / "tiny")


def link(source, target):
    Path(source).parent.mkdir(parents=True, exist_ok=True)
    Path(source).symlink_to(target)


CLASHES = {
    "a Zarr in the folder of its name": (
        lambda p: (p / "raw").rename(p / "b"),
        {"images": {"b": "b/b.ome.zarr/0"}, "stores": "."},
        r"stores.*the image b \(b/b\.ome\.zarr\) lies in the place of the results of the image b "
        r"\(b\)\..*folder for `stores`",
    ),
    "the folder of a Zarr itself": (
        lambda p: (p / "raw" / "b.ome.zarr").rename(p / "raw" / "b"),
        {"images": {"b": "raw/b"}, "stores": "raw"},
        r"the image b \(raw/b\) and the results .*\(raw/b\) are one place",
    ),
    "stores in a Zarr": (
        None,
        {"images": {"b": "raw/b.ome.zarr/0"}, "stores": "raw/b.ome.zarr"},
        r"the results of the image b \(raw/b\.ome\.zarr/b\) lies in the place of the image b",
    ),
    "a folder of slices": (None, {"images": {"scans": "data/scans"}, "stores": "data"}, "z_0.tif"),
    "a glob": (None, {"images": {"scans": "data/*/z_*.tif"}, "stores": "data"}, "z_0.tif"),
    "another image's folder": (
        None,
        {"images": {"scans": "image.tif", "b": "data/scans"}, "stores": "data"},
        "the image b .* the results of the image scans",
    ),
    "stores through a link": (
        None,
        {"images": {"scans": "data/scans"}, "stores": "link"},
        r"link/scans, which is /.*/project/data/scans",
    ),
    "an image through a link": (
        None,
        {"images": {"scans": "link/scans"}, "stores": "data"},
        r"the image scans \(link/scans/z_0.tif, which is /.*/project/data/scans/z_0.tif\)",
    ),
    "an image that is a link away from there": (
        lambda _: link("stores/b/b.ome.zarr", "../../raw/b.ome.zarr"),
        {"images": {"b": "stores/b/b.ome.zarr/0"}, "stores": "stores"},
        r"the image b \(stores/b/b\.ome\.zarr\) lies in the place of the results",
    ),
    "a file that is a link away from there": (
        lambda _: link("results/b/raw.tif", "../../image.tif"),
        {"images": {"b": "results/b/raw.tif"}},
        r"the image b \(results/b/raw\.tif\) lies in",
    ),
    "`..` after a link": (
        lambda _: link("deep", "data/scans"),
        {"images": {"scans": "deep/../scans"}, "stores": "data"},
        "z_0.tif",
    ),
    "results that are a link": (
        lambda _: link("results", "data"),
        {"images": {"scans": "data/scans"}},
        r"images: .*results/scans, which is .*another name for the image scans",
    ),
    "work that is a link to the image": (
        lambda _: link("results/b/work", "../../data"),
        {"images": {"b": "data/raw.tif"}},
        r"the work of the image b \(results/b/work, which is /.*/project/data\)",
    ),
    "an image in the results": (
        lambda p: tifffile.imwrite(make_folder(p / "results" / "b") / "raw.tif", picture(9, 9)),
        {"images": {"b": "results/b/raw.tif"}},
        "results/b",
    ),
    "an image in the logs": (
        lambda p: tifffile.imwrite(make_folder(p / "logs" / "b") / "raw.tif", picture(9, 9)),
        {"images": {"b": "logs/b/raw.tif"}},
        "logs/b",
    ),
    "labels": (
        None,
        {"images": {"scans": "image.tif"}, "stores": "data", "labels": "data/scans/z_0.tif"},
        "the labels of the image scans",
    ),
    "a model": (None, {"images": {"model": "image.tif"}, "stores": "."}, "the model ./model"),
    "stores in a model": (
        None,
        {"images": {"b": "image.tif"}, "stores": "model"},
        "lies in the place of the model",
    ),
    "an image in a trained model": (
        lambda p: tifffile.imwrite(make_folder(p / "models" / "tiny") / "raw.tif", picture(9, 9)),
        {"images": {"b": "image.tif"}, "train": training(image="models/tiny/raw.tif")},
        "train: .*another name for the training tiny",
    ),
    "weights to start from": (
        None,
        {"images": {"start": "image.tif"}, "stores": ".", "train": training(start="./start")},
        "the weights that the training starts from",
    ),
    "two images on one folder": (
        lambda p: (make_folder(p / "results" / "a"), link("results/b", "a")),
        {"images": {"a": "image.tif", "b": "image.tif"}},
        "of the image b .*and .*of the image a .*are one place",
    ),
    "the stores of one in the results of another": (
        None,
        {"images": {"a": "image.tif", "b": "image.tif"}, "stores": "results/a"},
        "of the image b .*lies in the place of .*of the image a",
    ),
    "a model on results": (
        None,
        {"images": {"tiny": "image.tif"}, "stores": "models", "train": training()},
        "the model of the training tiny",
    ),
    "a bucket": (
        None,
        {"images": {"b": "s3://bucket/raw/b/image.zarr"}, "stores": "s3://bucket/raw"},
        "lies in the place",
    ),
}


def make_folder(folder):
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", CLASHES)
def test_a_clash_is_told_with_both_places_and_what_to_change(project, name):
    prepare, asked, told = CLASHES[name]
    if prepare:
        prepare(project)
    before = files_in(project)
    with pytest.raises(ConfigError, match=told):
        check(**asked)
    assert files_in(project) == before


NO_CLASHES = {
    "a file beside": {"images": {"b": "data/raw.tif"}, "stores": "data"},
    "a file of the same name": {"images": {"raw": "data/raw.tif"}, "stores": "data"},
    "slices beside": {"images": {"b": "data/scans"}, "stores": "data"},
    "results in a folder of slices": {"images": {"b": "data/scans"}, "stores": "data/scans"},
    "a Zarr beside": {"images": {"b": "raw/b.ome.zarr/0"}, "stores": "raw"},
    "an image in the project": {"images": {"b": "image.tif"}},
    "all slices of the project": {"images": {"b": "."}},
    "stores outside": {"images": {"b": "../project/data/raw.tif"}, "stores": "../disk"},
    "stores in the project": {"images": {"b": "image.tif"}, "stores": "."},
    "a name that begins alike": {"images": {"sca": "data/scans"}, "stores": "data"},
    "an image twice": {"images": {"a": "image.tif", "b": "./image.tif"}},
    "labels and image": {"images": {"b": "data/raw.tif"}, "labels": "data/labels.tif"},
    "a shipped model": {"images": {"b": ("image.tif", "fluo-nuclei")}},
    "a training": {"images": {"b": "image.tif"}, "train": training(start="./start")},
    "a model that is trained further": {
        "images": {"b": ("image.tif", "models/tiny")},
        "train": training(start="models/tiny"),
    },
    "weights that are trained further": {
        "images": {"b": "image.tif"},
        "train": training(start="models/tiny/weights.safetensors"),
    },
    "another project's results": {"images": {"b": "results/earlier/raw.tif"}},
    "a bucket": {"images": {"b": "s3://bucket/raw/b.zarr"}, "stores": "s3://bucket/raw"},
}


@pytest.mark.parametrize("name", NO_CLASHES)
def test_what_lies_beside_is_no_clash(project, name):
    make_trained(project)
    tifffile.imwrite(make_folder(project / "results" / "earlier") / "raw.tif", picture(9, 9))
    (project / "results" / "b").mkdir()
    (project / "results" / "b" / "work").symlink_to("../../../disk")
    check(**NO_CLASHES[name])


def test_a_model_may_be_the_folder_of_the_project(project, monkeypatch):
    monkeypatch.chdir(project / "model")
    check({"b": ("../image.tif", "../model")})


# --- Any spelling, as the system follows it ------------------------------------------------------

LINKS = {"l": "a", "a/l": "../b", "b/l": "../a/b", "a/b/l": "../../b"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Folders `a` and `b`, two deep, links between them, and an image in each."""
    folder = tmp_path_factory.mktemp("tree")
    make_tiny_model(folder / "model")
    for inner in ("", "a", "b", "a/a", "a/b", "b/a", "b/b"):
        (folder / inner).mkdir(exist_ok=True)
        tifffile.imwrite(folder / inner / "x.tif", picture(9, 9))
    for source, target in LINKS.items():
        (folder / source).symlink_to(target)
    return folder


def is_inside(file, folder):
    """Whether the system finds a folder above a file; it follows links and `..` by itself."""
    above = [Path(file).parent.joinpath(*[".."] * count) for count in range(20)]
    return Path(folder).is_dir() and any(each.samefile(folder) for each in above)


NAMES = st.lists(st.sampled_from(["a", "b", "l", ".."]), max_size=5).map("/".join)


@given(NAMES, NAMES, st.sampled_from("abl"))
def test_any_way_to_write_a_path_is_judged_by_where_it_leads(tree, inner, stores, name):
    image, stores = f"{tree}/{inner}/x.tif", f"{tree}/{stores}"
    assume(Path(image).is_file() and is_inside(image, tree))
    if is_inside(image, f"{stores}/{name}"):
        with pytest.raises(ConfigError, match="the image"):
            check({name: (image, str(tree / "model"))}, stores)
    else:
        check({name: (image, str(tree / "model"))}, stores)


# --- The workflow --------------------------------------------------------------------------------


def test_a_run_that_would_replace_its_image_begins_nothing(run_workflow, tiny_model, tmp_path):
    group = zarr.open_group(tmp_path / "raw" / "b" / "b.ome.zarr", mode="w")
    group.create_array("0", data=picture(20, 30))
    image = {"name": "b", "path": "raw/b/b.ome.zarr/0", "axes": "yx"}
    config = {"images": [{**image, "model": str(tiny_model.folder)}], "stores": "raw"}
    before = files_in(tmp_path / "raw")
    done = run_workflow(config, tmp_path)
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "The configuration is wrong. stores: expected the run to write where" in told
    assert "Traceback" not in told
    assert files_in(tmp_path / "raw") == before
    assert not (tmp_path / "results").exists()
