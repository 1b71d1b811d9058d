"""S3 and web servers, against a real one: SeaweedFS on loopback, started once for these tests."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from runpy import run_path
from typing import Any
from urllib.parse import quote

import imagecodecs
import numpy as np
import obstore
import pytest
import tifffile
import zarr
from conftest import REPOSITORY, files_in, picture
from hypothesis import given
from hypothesis import strategies as st
from support import GENEROUS, ONE_CORE, command_lines, run_stages, watched
from zarr.storage import ObjectStore

from unet.console import report_to
from unet.errors import RunError, ServerError, SourceError, StoreError, UserError
from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.planning.geometry import Box
from unet.planning.options import SplitOptions, StitchOptions
from unet.sources import open_source
from unet.sources.base import SourceSpec
from unet.sources.file import RemoteFile
from unet.stages import ingest, predict, split, stitch, verify
from unet.stages.manifests import IngestManifest
from unet.stages.probabilities import (
    create_probabilities,
    probabilities_array,
)
from unet.storage import aws_profile, ome, server
from unet.storage.ledger import Ledger, recorded
from unet.storage.link import link_shard
from unet.storage.location import Location, RemotePath, files, locate
from unet.storage.manifest import read_manifest
from unet.storage.workspace import Workspace

CUT = {"shard": (64, 64), "chunk": (32, 32), "core": (32, 64)}
KEY, SECRET = "key-of-the-test", "Secret/of+the+test"
TOKEN = "Session/token+of+the+test=="
SCRIPTS = REPOSITORY / "tests"
SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"

pytestmark = pytest.mark.s3


@dataclass(frozen=True)
class Server:
    """The server of these tests; its web port serves buckets too, as /buckets/<bucket>/<key>."""

    folder: Path
    port: int

    def run(self, script: str, *arguments: str) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "S3_TEST_DIR": str(self.folder),
            "S3_TEST_PORT": str(self.port),
            "S3_TEST_KEY": KEY,
            "S3_TEST_SECRET": SECRET,
            "WEED": str(Path(sys.executable).with_name("weed")),
        }
        command = ["bash", str(SCRIPTS / script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def kill(self) -> None:
        os.kill(int((self.folder / "weed.pid").read_text()), 9)

    @property
    def settings(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def free_port() -> int:
    """The first of four ports that are free, as are those 10000 above them."""
    for port in range(18400, 28000, 8):
        with ExitStack() as opened:
            try:
                for wanted in (*range(port, port + 4), *range(port + 10000, port + 10004)):
                    opened.enter_context(socket.socket()).bind(("127.0.0.1", wanted))
            except OSError:
                continue
            return port
    raise RuntimeError("no free ports")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("s3"), free_port())
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, str(started.folder / "none"))
        for name, value in started.settings.items():
            patch.setenv(name, value)
        started.run("start-s3.sh")
        yield started
        started.run("stop-s3.sh", "--purge")


@pytest.fixture
def bucket(s3: Server, request: pytest.FixtureRequest) -> RemotePath:  # noqa: ARG001
    """A bucket of the test's own; the server makes it with its first object."""
    server.client.cache_clear()
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:63]
    made = locate(f"s3://{name}")
    assert isinstance(made, RemotePath)
    (made / "made").write_bytes(b"")
    delete(made / "made")
    return made


@pytest.fixture(scope="module")
def machines(s3: Server) -> Iterator[Machines]:  # noqa: ARG001
    """A worker that has the keys in its environment."""
    with connect(ONE_CORE) as workers:
        yield Machines.for_data(workers.client.scheduler.address, 1)


@pytest.fixture(scope="module")
def pixels():
    return picture(150, 210)


@pytest.fixture(scope="module")
def source(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("source") / "image.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib")
    return SourceSpec(str(path), pixel_size={"y": 0.5, "x": 0.5})


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory, source, tiny_model, machines):
    """An undisturbed run on the disk: what all others are compared with."""
    workspace = Workspace(tmp_path_factory.mktemp("disk") / "image")
    run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    return workspace


def objects_in(folder: Any) -> dict[str, bytes]:
    return {entry.path: (folder / entry.path).read_bytes() for entry in files(folder)}


def delete(file: Location) -> None:
    obstore.delete(server.client(file.root), file.key)


def upload(folder: Path, target: RemotePath) -> RemotePath:
    for name, content in files_in(folder).items():
        (target / name).write_bytes(content)
    return target


def stores(workspace: Workspace) -> dict[str, bytes]:
    """Every byte of the ingested image, the probabilities and the result, wherever they lie."""
    result = locate(read_manifest(workspace.manifest("stitch"), stitch.StitchManifest).result)
    found = {f"result/{name}": content for name, content in objects_in(result).items()}
    for name, content in objects_in(workspace.home / "work").items():
        folder, _, rest = name.partition("/")
        if folder.startswith(("ingest", "predict")) and not rest.startswith(
            ("ledger", "self_test")
        ):
            found[f"{folder}/{rest}"] = content
    return found


def assert_only_records(work: Path) -> None:
    """The stores lie elsewhere: here are the ledgers, the lock and the test window's values."""
    for name in files_in(work):
        known = Path(name).name in ("lock", "owner", "self_test.json")
        assert known or "/ledger/" in name, name


def on_s3(bucket: RemotePath, root: Path) -> Workspace:
    return Workspace(root / "image", f"{bucket}/stores")


def opened(result: RemotePath, array: str) -> Any:
    return zarr.open_array(ObjectStore(result.objects()), path=array, mode="r")


# --- Reading --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """One file of each kind, with (y, x) or (z, y, x) uint16 pixels."""
    folder = tmp_path_factory.mktemp("formats")
    plane, stack = picture(150, 210, dtype="uint16"), picture(5, 60, 70, dtype="uint16")
    tifffile.imwrite(folder / "tiled.tif", plane, tile=(64, 64), compression="zlib")
    tifffile.imwrite(folder / "plain.tif", plane, byteorder=">")
    tifffile.imwrite(folder / "imagej.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffWriter(folder / "pyramid.ome.tif") as tif:
        tif.write(plane, tile=(64, 64), subifds=1, compression="zlib")
        tif.write(plane[::2, ::2], tile=(64, 64), subfiletype=1, compression="zlib")
    np.save(folder / "c.npy", plane)
    np.save(folder / "fortran.npy", np.asfortranarray(plane))
    (folder / "grey.png").write_bytes(imagecodecs.png_encode(plane.astype("uint8")))
    (folder / "slices").mkdir()
    for z, one in enumerate(stack):
        tifffile.imwrite(folder / "slices" / f"z_{z + 8}.tif", one)
    zarr.create_array(folder / "own.zarr", data=plane, chunks=(50, 70), zarr_format=2)
    described = ome.multiscales("image", "yx", {"y": 0.5, "x": 0.5}, [(1,) * 4], "mean")
    zarr.create_group(folder / "image.ome.zarr", attributes=described)
    zarr.create_array(folder / "image.ome.zarr/0", data=plane, chunks=(32, 32), shards=(64, 64))
    return folder


SPECS = {
    "tiled.tif": {},
    "plain.tif": {},
    "imagej.tif": {},
    "pyramid.ome.tif": {"level": 1},
    "c.npy": {},
    "fortran.npy": {},
    "grey.png": {},
    "slices": {},
    "slices/z_*.tif": {},
    "own.zarr": {},
    "image.ome.zarr": {},
}


@pytest.fixture(scope="module")
def uploaded(s3: Server, formats: Path) -> RemotePath:  # noqa: ARG001
    return upload(formats, RemotePath("s3://formats", "in the/bucket"))


def assert_reads_the_same(url: str, path: Path, said: dict[str, Any]) -> None:
    local, remote = open_source(SourceSpec(str(path), **said)), open_source(SourceSpec(url, **said))
    for name in ("axes", "shape", "dtype", "chunks", "pixel_size", "channel_names"):
        assert getattr(remote, name) == getattr(local, name), name
    t, _, z, y, x = local.shape
    for box in (Box((0,) * 4, (t, z, y, x)), Box((0, z // 2, 7, 11), (t, z, y - 3, x - 20))):
        assert np.array_equal(remote.read(box), local.read(box))
    local.close()
    remote.close()


@pytest.mark.parametrize("name", SPECS)
def test_every_format_is_read_from_s3_as_from_the_disk(name, uploaded, formats):
    assert_reads_the_same(str(uploaded / name), formats / name, SPECS[name])


@pytest.mark.parametrize("name", ["tiled.tif", "plain.tif", "c.npy", "grey.png"])
def test_files_are_read_from_a_web_server_as_from_the_disk(name, uploaded, formats, s3):
    url = f"http://127.0.0.1:{s3.port + 3}/buckets/formats/{uploaded.key}/{name}"
    assert_reads_the_same(url.replace(" ", "%20"), formats / name, SPECS[name])


def test_a_web_server_that_serves_no_parts_of_files_is_an_error(formats):
    command = [sys.executable, "-um", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=formats, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as web:
        try:
            (port,) = re.findall(r"port (\d+)", web.stdout.readline())
            with pytest.raises(ServerError, match="serves only whole files"):
                open_source(SourceSpec(f"http://127.0.0.1:{port}/tiled.tif"))
            with pytest.raises(SourceError, match="does not exist: its server has no such file"):
                open_source(SourceSpec(f"http://127.0.0.1:{port}/no.zarr"))
        finally:
            web.terminate()


@given(st.data())
def test_any_box_of_uncompressed_data_is_found_by_its_bytes(data):
    """Rows, planes or single values: the runs of bytes that are asked for make up the box."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4), label="shape"))
    where = []
    for size in shape:
        start = data.draw(st.integers(0, size))
        where.append(slice(start, data.draw(st.integers(start, size))))
    array = np.arange(np.prod(shape), dtype=">u2").reshape(shape)
    content = b"header" + array.tobytes()

    class InMemory:
        def read_ranges(self, ranges):
            return [content[start : start + count] for start, count in ranges]

    file = RemoteFile.__new__(RemoteFile)
    file.path = InMemory()
    found = file.read_box(array.dtype, len(b"header"), shape, tuple(where))
    assert np.array_equal(found, array[tuple(where)])
    assert found.dtype == np.dtype("u2")


def test_a_zarr_on_s3_is_read_in_place(
    bucket, on_disk, pixels, source, tiny_model, machines, tmp_path
):
    zarr.create_array(tmp_path / "own.zarr", data=pixels, chunks=(50, 70), zarr_format=2)
    image = upload(tmp_path / "own.zarr", bucket / "own.zarr")
    before = objects_in(bucket)
    workspace = Workspace(tmp_path / "image")
    spec = SourceSpec(str(image), pixel_size=source.pixel_size)
    run_stages(spec, tiny_model, workspace, machines=machines, **CUT)
    assert objects_in(bucket) == before
    assert not list((workspace.root / "work").glob("ingest-*"))
    assert files_in(workspace.result / "labels") == files_in(on_disk.result / "labels")
    assert np.array_equal(zarr.open_array(workspace.result / "0", mode="r")[...], pixels)
    (image / "0.1").write_bytes((image / "0.0").read_bytes())
    with pytest.raises(SourceError, match="changed since"):
        predict.run(workspace, 0, 1, machines, "cpu")


# --- Writing --------------------------------------------------------------------------------------


def test_a_run_on_s3_gives_the_same_bytes_as_one_on_the_disk(
    bucket, on_disk, source, tiny_model, machines, tmp_path
):
    """From S3 to S3: the copy of the image, the probabilities, the result; manifests stay here."""
    (bucket / "raw" / "image.tif").write_bytes(Path(source.path).read_bytes())
    workspace = on_s3(bucket, tmp_path)
    spec = SourceSpec(f"{bucket}/raw/image.tif", pixel_size=source.pixel_size)
    run_stages(spec, tiny_model, workspace, machines=machines, slabs=2, **CUT)
    wanted = {re.sub("^(ingest)-[0-9a-f]+", r"\1", n): c for n, c in stores(on_disk).items()}
    found = {re.sub("^(ingest)-[0-9a-f]+", r"\1", n): c for n, c in stores(workspace).items()}
    assert found == wanted
    assert len(wanted) > 30
    here = {name.split("/")[0] for name in files_in(workspace.root)}
    assert here == {
        "ingest.json",
        "histograms.npy",
        "split.json",
        "predict",
        "stitch.json",
        "work",
        "written",
    }
    assert_only_records(workspace.root / "work")
    before = objects_in(bucket)
    run_stages(spec, tiny_model, workspace, machines=machines, slabs=2, **CUT)
    assert objects_in(bucket) == before


def test_stores_behind_a_url_are_written_from_one_results_folder_only(
    bucket, on_disk, source, tiny_model, machines, tmp_path
):
    """As on two machines, which share no lock, and may have processors of two kinds."""
    first, second = (on_s3(bucket, tmp_path / name) for name in ("one", "two"))
    run_stages(source, tiny_model, first, machines=machines, **CUT)
    before = objects_in(bucket)
    with pytest.raises(RunError, match="from this results folder only, but another one was the"):
        ingest.run(source, second, machines)
    assert objects_in(bucket) == before
    run_stages(source, tiny_model, first, machines=machines, **CUT)
    delete(first.home / "owner")
    run_stages(source, tiny_model, second, machines=machines, **CUT)
    assert stores(second) == stores(on_disk)


def test_of_two_results_folders_at_once_one_is_the_first(bucket, tmp_path):
    def claim(number: int) -> bool:
        try:
            with on_s3(bucket, tmp_path / str(number)).lock():
                return True
        except RunError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(8))) == 1


def test_a_result_is_drawn_and_measured_wherever_it_lies(bucket, on_disk):
    """What the scripts `picture.py` and `demo.py` read."""
    picture, demo = (run_path(str(REPOSITORY / f"scripts/{of}.py")) for of in ("picture", "demo"))
    url = str(upload(on_disk.result, bucket / "image.ome.zarr"))
    drawn, masks = [], []
    for result in (str(on_disk.result), url):
        drawn.append(picture["picture"](result, (10, 20), 64, 0))
        masks.append(demo["foreground"](SourceSpec(f"{result}/labels/mask")))
    assert drawn[0].shape == (64, 3 * 64 + 16, 3)
    assert 0 < masks[0].mean() < 1
    assert np.array_equal(*drawn)
    assert np.array_equal(*masks)
    with pytest.raises(SystemExit, match="to hold an image and labels/mask"):
        picture["picture"](f"{url}/gone", (0, 0), 64, 0)


def test_an_image_is_never_copied_into_a_bucket_of_another_name():
    """Nor from a server to a disk, or back."""
    one, two, here = locate("s3://one/shard"), locate("s3://two/shard"), Path("shard")
    for image, result in [(one, two), (one, here), (here, two)]:
        with pytest.raises(StoreError, match="`stores` was changed since"):
            link_shard(image, result)


def test_stores_may_lie_on_another_disk(on_disk, source, tiny_model, machines, tmp_path):
    workspace = Workspace(tmp_path / "here" / "image", str(tmp_path / "there"))
    run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    assert workspace.result == tmp_path / "there" / "image" / "image.ome.zarr"
    assert files_in(workspace.result) == files_in(on_disk.result)
    assert_only_records(workspace.root / "work")


def test_a_hole_on_s3_is_an_error_and_only_its_block_is_done_again(
    bucket, source, tiny_model, machines, tmp_path
):
    workspace = on_s3(bucket, tmp_path)
    plan = run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    target = create_probabilities(plan, workspace)
    before = stores(workspace)
    delete(target.array.shard_file(7))
    target.array.shard_file(3).write_bytes(b"cut short")
    with pytest.raises(StoreError, match=r"2 are missing or damaged: block 3 .*block 7 "):
        stitch.run(workspace, StitchOptions(threshold=0.4), machines)
    with pytest.raises(StoreError, match=r"Expected the file s3://.*it is missing or empty"):
        target.array.read(plan.grid.box(7))
    recorded_before = list(recorded(target.ledger))
    predict.run(workspace, 0, 1, machines, "cpu")
    again = [block for block, _ in recorded(target.ledger)][len(recorded_before) :]
    assert sorted(again) == [3, 7]
    assert stores(workspace) == before


def test_a_result_on_s3_is_whole_or_not_there(
    bucket, source, tiny_model, machines, tmp_path, monkeypatch
):
    """A reader never opens a part; a failed run and a later one leave the earlier result whole."""
    workspace = on_s3(bucket, tmp_path)
    run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    first, _ = workspace.built(
        read_manifest(workspace.manifest("stitch"), stitch.StitchManifest).fingerprint
    )
    before = objects_in(first)
    reader = opened(first, "labels/mask/0")
    seen = reader[...]

    write = stitch.write_document

    def fail_at_the_root(group: Location, document: dict[str, Any]) -> None:
        if "unet" in document["attributes"]:
            raise RuntimeError("killed before the end")
        write(group, document)

    choice = StitchOptions(threshold=0.45)
    with monkeypatch.context() as patch:
        patch.setattr(stitch, "write_document", fail_at_the_root)
        with pytest.raises(RuntimeError, match="killed before the end"):
            stitch.run(workspace, choice, machines)
    (second,) = {
        name.split("/")[0]
        for name in objects_in(workspace.home)
        if name.startswith("stitch-") and not name.startswith(first.parent.name)
    }
    unfinished = workspace.home / second / "image.ome.zarr"
    assert (unfinished / "labels/mask/0/zarr.json").exists()
    with pytest.raises(FileNotFoundError):
        zarr.open_group(ObjectStore(unfinished.objects()), mode="r")
    assert objects_in(first) == before
    stitch.run(workspace, choice, machines)
    assert (
        zarr.open_group(ObjectStore(unfinished.objects()), mode="r").attrs["unet"]["run"] == second
    )
    assert not np.array_equal(opened(unfinished, "labels/mask/0")[...], seen)
    assert objects_in(first) == before
    assert np.array_equal(reader[...], seen)


def test_a_result_on_s3_that_lost_a_shard_is_made_whole(
    bucket, source, tiny_model, machines, tmp_path
):
    workspace = on_s3(bucket, tmp_path)
    run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    before = stores(workspace)
    result = locate(read_manifest(workspace.manifest("stitch"), stitch.StitchManifest).result)
    delete(result / "labels/mask/0/c/1/1")
    stitch.run(workspace, StitchOptions(), machines)
    assert stores(workspace) == before


def test_a_run_on_s3_is_verified_and_what_is_damaged_is_made_again(
    bucket, source, tiny_model, machines, tmp_path
):
    """A flipped bit, a cut object and lost ones: of the copy, the probabilities and the result."""
    workspace = on_s3(bucket, tmp_path)
    plan = run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    before = stores(workspace)
    target = create_probabilities(plan, workspace)
    result = locate(read_manifest(workspace.manifest("stitch"), stitch.StitchManifest).result)
    copy = locate(plan.image.store) / plan.image.array / "c/0/0"
    content = bytearray(copy.read_bytes())
    content[len(content) // 3] ^= 1
    copy.write_bytes(bytes(content))
    target.array.shard_file(3).write_bytes(b"cut short")
    delete(target.array.shard_file(7))
    delete(result / "labels/mask/0/c/0/2")
    asked = verify.VerifyOptions(source, StitchOptions(), blocks=4)
    verify.run(workspace, asked, verify.StageMachines(machines, machines, "cpu"))
    proof = read_manifest(workspace.manifest("verify"), verify.VerifyManifest)
    assert set(proof.made_again) == {
        *("image copy, block 0", "probabilities, block 3", "probabilities, block 7"),
        "mask level 0, block 2",
    }
    assert proof.passed
    assert proof.agreement.largest_difference == 0
    root = zarr.open_group(ObjectStore(result.objects()), mode="r")
    assert root.attrs["unet"]["verify"]["passed"]
    after = stores(workspace)
    for found in (before, after):
        del found["result/zarr.json"]  # it holds the proof now
    assert after == before


# --- Servers that are away, and what is told ------------------------------------------------------


def nothing_was_begun(workspace: Workspace) -> bool:
    return not workspace.root.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "Wrong/" + SECRET}, r"127.0.0.1:\d+ refused it \(status 403\)"),
        ({"AWS_ACCESS_KEY_ID": "wrong-" + KEY}, r"127.0.0.1:\d+ refused it \(status 403\)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "answer from http://127.0.0.1:9 for s3://"),
        ({"AWS_ENDPOINT_URL": f"http://{KEY}:{SECRET}@h"}, "host in AWS_ENDPOINT_URL, and nothing"),
        ({"AWS_ENDPOINT_URL": f"http://{KEY}:x@h:9"}, "host in AWS_ENDPOINT_URL, and nothing"),
    ],
)
@pytest.mark.parametrize("end", ["input", "output"])
def test_each_trouble_with_a_server_has_its_sentence_before_anything_is_begun(
    settings, message, end, bucket, source, tmp_path, monkeypatch
):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("unet.storage.location.FIRST_PATIENCE", timedelta(seconds=0.5))
    workspace = on_s3(bucket, tmp_path) if end == "output" else Workspace(tmp_path / "image")
    spec = source if end == "output" else SourceSpec(f"{bucket}/image.tif")
    with pytest.raises(UserError, match=message) as refused:
        ingest.run(spec, workspace, ONE_CORE)
    chain: BaseException | None = refused.value
    while chain is not None:
        assert KEY not in str(chain)
        assert SECRET not in str(chain)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    assert nothing_was_begun(workspace)


def test_a_missing_bucket_and_a_missing_object_have_a_sentence_each(bucket, source, tmp_path):
    missing = SourceSpec("s3://no-such-bucket/image.tif")
    workspace = Workspace(tmp_path / "image")
    with pytest.raises(ServerError, match="Expected the bucket of s3://no-such-bucket"):
        ingest.run(missing, workspace, ONE_CORE)
    with pytest.raises(ServerError, match="Expected the bucket of s3://no-such-bucket/a/image"):
        ingest.run(source, Workspace(tmp_path / "image", "s3://no-such-bucket/a"), ONE_CORE)
    with pytest.raises(SourceError, match=r"no-image\.tif does not exist: its server has no such"):
        ingest.run(SourceSpec(f"{bucket}/no-image.tif"), workspace, ONE_CORE)
    assert nothing_was_begun(workspace)


def test_keys_that_are_nowhere_are_asked_for(bucket, monkeypatch):
    """A cloud's machine asks a service on a fixed address for its keys, and none is here."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://169.254.0.1:9")
    monkeypatch.setattr("unet.storage.location.FIRST_PATIENCE", timedelta(seconds=0.1))
    with pytest.raises(ServerError, match=r"Expected keys for s3://.*and found none"):
        ingest.check(bucket)


def test_a_run_takes_its_keys_from_a_profile_and_writes_them_nowhere(
    bucket, source, s3, tmp_path, monkeypatch
):
    """In each process that opens a store: the keys do not travel to the workers."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(variable)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    keys = f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    (secrets / "credentials").write_text(f"[lab]\n{keys}")
    address = s3.settings["AWS_ENDPOINT_URL"]
    (secrets / "config").write_text(f"[profile lab]\nendpoint_url = {address}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(secrets / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(secrets / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    server.client.cache_clear()
    aws_profile._session.cache_clear()
    (bucket / "image.tif").write_bytes(Path(source.path).read_bytes())
    place = on_s3(bucket, tmp_path)
    ingest.run(SourceSpec(f"{bucket}/image.tif"), place, ONE_CORE)
    image = read_manifest(place.manifest("ingest"), IngestManifest).image
    assert image.store.startswith(f"{bucket}/")
    for content in (*files_in(place.root).values(), *objects_in(bucket).values()):
        assert KEY.encode() not in content
        assert SECRET.encode() not in content
    for connection in (server.client(bucket.root), bucket.objects()):
        assert not {KEY, SECRET} & set(map(str, connection.config.values()))
    server.client.cache_clear()
    aws_profile._session.cache_clear()


def test_a_dry_run_asks_no_server_and_keys_are_written_nowhere(
    bucket, source, tiny_model, run_workflow, tmp_path, monkeypatch
):
    (bucket / "image.tif").write_bytes(Path(source.path).read_bytes())
    item = {"name": "image", "path": f"{bucket}/image.tif", "model": str(tiny_model.folder)}
    config = {
        "images": [item],
        "stores": f"{bucket}/stores",
        "split": {"shard": [64, 64], "chunk": [32, 32]},
    }
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        planned = run_workflow(config, tmp_path, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    done = run_workflow(config, tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "results/image/stitch.json", stitch.StitchManifest)
    assert manifest.mask.startswith(f"{bucket}/stores/image/stitch-")
    assert f"the mask is {manifest.mask}" in done.stderr
    assert opened(locate(manifest.mask), "0").shape == (150, 210)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "Wrong/" + SECRET)
    log = tmp_path / "logs" / "failed.log"
    with pytest.raises(SystemExit), report_to(str(log)):
        ingest.run(SourceSpec(item["path"]), Workspace(tmp_path / "image"), ONE_CORE)
    assert re.search(r"ServerError: .*refused it \(status 403\)", log.read_text())
    monkeypatch.undo()
    written = [*files_in(tmp_path).values(), *objects_in(bucket).values()]
    for content in (*written, done.stdout.encode(), done.stderr.encode()):
        assert KEY.encode() not in content
        assert SECRET.encode() not in content


def forms(secret: str) -> set[bytes]:
    """How a file may hold a secret without showing it."""
    raw = secret.encode()
    return {raw, quote(secret, safe="").encode(), b64encode(raw).rstrip(b"="), raw.hex().encode()}


@pytest.mark.slow
def test_no_file_that_a_run_leaves_and_no_command_line_holds_a_key(
    bucket, source, tiny_model, run_workflow, tmp_path
):
    """Results, logs, all that Snakemake keeps, its job files, temporary files, and the objects."""
    for name in ("image.tif", "label.tif"):
        (bucket / name).write_bytes(Path(source.path).read_bytes())
    item = {"name": "image", "path": f"{bucket}/image.tif", "model": str(tiny_model.folder)}
    config = {
        "images": [item],
        "stores": f"{bucket}/stores",
        "split": {"shard": [64, 64], "chunk": [32, 32]},
        "evaluate": [{"name": "image", "label": f"{bucket}/label.tif"}],
    }
    (tmp_path / "tmp").mkdir()
    command = (config, tmp_path, "--skip-script-cleanup", "--verbose", "all", "verify", "evaluate")
    temporary = {"TMPDIR": str(tmp_path / "tmp")}
    with watched(command_lines) as lines:
        # The server knows no such session, and its answer may repeat what it was asked with.
        refused = run_workflow(*command, AWS_SESSION_TOKEN=TOKEN, **temporary)
        done = run_workflow(*command, **temporary)
    assert "ServerError: Expected access to" in refused.stderr
    assert done.returncode == 0, done.stderr
    left = files_in(tmp_path)
    for part in (".snakemake/metadata/", ".snakemake/log/", ".snakemake/scripts/", "logs/"):
        assert [name for name in left if name.startswith(part)], part
    assert any("predict" in line for line in lines)
    said = (refused.stdout, refused.stderr, done.stdout, done.stderr, *lines)
    written = [*left.values(), *objects_in(bucket).values(), *map(str.encode, said)]
    for secret in (KEY, SECRET, TOKEN):
        for content in written:
            assert not [form for form in forms(secret) if form in content]


def test_a_run_rides_out_a_server_that_goes_and_comes_back(
    bucket, on_disk, s3, source, tiny_model, machines, tmp_path, monkeypatch
):
    """Killed without warning; what waits longer than it may is told, and nothing is lost."""
    workspace = on_s3(bucket, tmp_path)
    ingest.run(source, workspace, machines)
    plan = split.run(workspace, str(tiny_model.folder), SplitOptions(memory=GENEROUS, **CUT), 1)
    target = create_probabilities(plan, workspace)
    array = probabilities_array(plan, workspace)
    do = predict.PredictJob("serial", plan, array, "cpu", threads=1).open()
    with Ledger(target.ledger, "serial") as ledger:
        for block in range(4):
            ledger.add(block, do(block))
        s3.kill()
        with monkeypatch.context() as patch:
            patch.setattr(server, "PATIENCE", timedelta(seconds=0.5))
            server.client.cache_clear()
            with pytest.raises(ServerError, match=rf"http://127.0.0.1:{s3.port} for s3://"):
                predict.run(workspace, 0, 1, machines, "cpu")
        server.client.cache_clear()
        back = threading.Thread(target=s3.run, args=("start-s3.sh",))
        back.start()
        for block in range(4, 8):
            ledger.add(block, do(block))
        back.join()
    predict.run(workspace, 0, 1, machines, "cpu")
    stitch.run(workspace, StitchOptions(), machines)
    assert sorted(block for block, _ in recorded(target.ledger)) == list(range(12))
    assert stores(workspace) == stores(on_disk)
