"""What a path or URL names, and what is told of it: no server is asked here."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from obstore.store import S3Store

from unet.config import read_config
from unet.errors import ConfigError, ServerError
from unet.storage import aws_profile, server
from unet.storage.aws_profile import Profile, read_profile
from unet.storage.location import RemotePath, locate

KEY, SECRET = "key-of-the-test", "Secret/of+the+test"
SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b.tif", Path("a/b.tif")),
        ("~/b.tif", Path.home() / "b.tif"),
        ("file:///a/b%20c.tif", Path("/a/b c.tif")),
        ("file://localhost/a", Path("/a")),
        ("a/http://x", Path("a/http:/x")),
        ("s3://bucket", RemotePath("s3://bucket", "")),
        ("s3://bucket/a%20/b c.zarr/", RemotePath("s3://bucket", "a%20/b c.zarr")),
        ("https://host:81/a%20b.tif", RemotePath("https://host:81", "a b.tif")),
    ],
)
def test_a_path_or_url_is_located(text, expected):
    assert locate(text) == expected
    assert locate(str(expected)) == expected


SECRET_URLS = [
    f"s3://{KEY}:{SECRET}@bucket/image.tif",
    f"s3://{SECRET}@bucket/image.tif",
    f"https://{KEY}:{SECRET}@host/image.tif",
    f"https://host/image.tif?X-Amz-Signature={SECRET}",
    f"gs://{SECRET}/image.tif",
    f"s3://bucket/../{SECRET}",
    f"s3://bucket//{SECRET}",
    f"file://{SECRET}/image.tif",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_url_that_may_hold_a_secret_is_refused_and_not_repeated(url, tiny_model):
    images = [{"name": "a", "path": url, "model": str(tiny_model.folder)}]
    with pytest.raises(ConfigError, match=r"^images\[0\] \(a\): Expected a ") as refused:
        read_config({"images": images}, SCHEMA)
    images[0]["path"] = "s3://bucket/a.tif"
    with pytest.raises(ConfigError, match=r"^stores: Expected a ") as refused_too:
        read_config({"images": images, "stores": url}, SCHEMA)
    for said in (str(refused.value), str(refused_too.value)):
        assert KEY not in said
        assert SECRET not in said


def test_the_configuration_resolves_paths_and_asks_no_server(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b.npy").touch()
    paths = {"home": "~/a b.npy", "file": f"file://{tmp_path}/a%20b.npy", "s3": "s3://no/such"}
    images = [
        {"name": name, "path": path, "model": str(tiny_model.folder)}
        for name, path in paths.items()
    ]
    config = read_config({"images": images, "stores": "s3://no/stores/"}, SCHEMA)
    found = {name: image.source.path for name, image in config.images.items()}
    assert found == {**dict.fromkeys(("home", "file"), f"{tmp_path}/a b.npy"), "s3": "s3://no/such"}
    assert config.stores == "s3://no/stores"


def test_stores_are_not_written_to_a_web_server(tiny_model):
    images = [{"name": "a", "path": "s3://bucket/a.tif", "model": str(tiny_model.folder)}]
    with pytest.raises(ConfigError, match="a web server is read only"):
        read_config({"images": images, "stores": "https://host/stores"}, SCHEMA)


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The AWS files of this test, with the profiles lab and sso, and nothing in the environment."""
    (tmp_path / "config").write_text(
        "[profile lab]\nregion = eu-1\nendpoint_url = http://h:1\n"
        "[profile sso]\nsso_session = login\nsso_account_id = 1\nsso_role_name = reader\n"
        "[sso-session login]\nsso_region = eu-1\nsso_start_url = https://login\n"
        f"[profile broken]\ncredential_process = sh -c 'echo {SECRET} >&2; exit 1'\n"
        "[profile gone]\ncredential_process = /no/such/program\n"
    )
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = %{SECRET}\n"
        f"[half]\naws_access_key_id = {KEY}\n[default]\nregion = no\n"
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    aws_profile._session.cache_clear()
    yield monkeypatch
    aws_profile._session.cache_clear()


def without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet.storage.aws_profile.find_spec", lambda _name: None)


@pytest.mark.usefixtures("aws")
def test_a_profile_gives_keys_region_and_address():
    profile = read_profile()
    keys = profile.provider()
    assert (keys["access_key_id"], keys["secret_access_key"]) == (KEY, f"%{SECRET}")
    assert profile.config == {"region": "eu-1", "endpoint": "http://h:1"}
    store = server.connect("s3://bucket")
    assert store.config == {"region": "eu-1", "endpoint": "http://h:1", "bucket": "bucket"}
    assert KEY not in repr(profile) + repr(store)


def test_the_environment_wins_over_a_profile(aws):
    aws.setenv("AWS_ACCESS_KEY_ID", "other")
    assert read_profile().provider is None
    aws.setenv("AWS_REGION", "us-2")
    assert read_profile().config == {"endpoint": "http://h:1"}
    aws.setenv("AWS_ENDPOINT_URL", "http://other")
    assert read_profile().config == {}
    aws.delenv("AWS_ACCESS_KEY_ID")
    profile = read_profile()
    assert profile.provider()["access_key_id"] == KEY
    assert profile.config == {}


def test_public_data_need_no_keys(aws):
    aws.setenv("AWS_PROFILE", "sso")
    aws.setenv("AWS_SKIP_SIGNATURE", "True")
    assert read_profile().provider is None
    without_boto3(aws)
    assert read_profile() == Profile()


def test_without_boto3_the_environment_gives_keys_and_a_profile_asks_for_it(aws, tmp_path):
    without_boto3(aws)
    with pytest.raises(ConfigError, match="Expected boto3, which reads the profile 'lab'"):
        server.connect("s3://bucket")
    aws.setenv("AWS_ACCESS_KEY_ID", KEY)
    assert read_profile() == Profile()
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_PROFILE")
    with pytest.raises(ConfigError, match="the profile 'default'"):
        read_profile()
    (tmp_path / "config").unlink()
    (tmp_path / "credentials").unlink()
    assert read_profile() == Profile()


def test_a_web_server_needs_no_profile(aws):
    aws.setenv("AWS_PROFILE", "none")
    assert server.connect("https://host").url == "https://host/"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("none", "Expected a profile 'none' in"),
        ("sso", r"keys from the profile 'sso' .*\(SSOTokenLoadError\).* `aws sso login`"),
        ("half", r"keys from the profile 'half' .*\(PartialCredentialsError\)"),
        ("broken", r"keys from the profile 'broken' .*\(CredentialRetrievalError\)"),
        ("gone", r"keys from the profile 'gone' .*\(FileNotFoundError\)"),
    ],
)
def test_a_profile_without_keys_is_told_and_nothing_secret_is_repeated(profile, message, aws):
    aws.setenv("AWS_PROFILE", profile)
    with pytest.raises(ConfigError, match=message) as refused:
        server.connect("s3://bucket")
    assert SECRET not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("name", ["config", "credentials"])
def test_aws_files_that_do_not_read_as_such_are_told_and_not_repeated(name, tmp_path):
    (tmp_path / name).write_text(f"{SECRET}\n")
    with pytest.raises(ConfigError, match="Expected AWS settings in") as refused:
        read_profile()
    assert SECRET not in str(refused.value)


@pytest.mark.usefixtures("aws")
def test_a_profile_that_gives_keys_no_more_is_told():
    """As where a login ends during a run: obstore's error quotes what the provider raised."""

    def give() -> None:
        raise RuntimeError(SECRET)

    store = S3Store("bucket", credential_provider=give, config={"region": "eu-1"})
    with (
        pytest.raises(ServerError, match="keys for image from the profile") as refused,
        server.translate_errors("image"),
    ):
        store.head("key")
    assert SECRET not in str(refused.value)
    assert SECRET in str(refused.value.__context__), "the error is not the provider's"


def test_no_file_of_aws_means_no_profile_and_no_boto3(tmp_path):
    """Most users have neither, and should not wait for it."""
    code = (
        "import sys; from unet.storage.server import connect; connect('s3://bucket'); "
        "print({'boto3', 'botocore'} & sys.modules.keys())"
    )
    environment = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
    environment["HOME"] = str(tmp_path)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
