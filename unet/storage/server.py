"""How to talk to object stores and web servers: connections, and what to tell of their errors.

Credentials come from the environment, which obstore reads, or from the AWS files (`aws_profile`). A
server's answer may repeat them, so of an error only the server's address and the status are told.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from obstore.exceptions import BaseError
from obstore.store import HTTPStore, S3Store

from unet.errors import ConfigError, ServerError
from unet.storage.aws_profile import ENDPOINTS, read_profile

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

PATIENCE = timedelta(minutes=3)  # with a server that is away; a signed request is good for 5
FIRST_PATIENCE = timedelta(seconds=10)  # before anything was begun
LONGEST_REQUEST = timedelta(minutes=2)
LONGEST_PAUSE = timedelta(seconds=5)
METADATA_SERVICE = "169.254."  # where the machines of a cloud ask for keys
PROVIDER = "External AWS credential provider"  # so obstore calls what `aws_profile` gives it


@cache
def client(root: str) -> S3Store | HTTPStore:
    """The connection to a bucket or web server: one a process, since it keeps its lines open."""
    return connect(root)


def connect(root: str, prefix: str = "", patience: timedelta | None = None) -> S3Store | HTTPStore:
    """A new connection, to the part of a bucket or web server under `prefix`.

    patience  how long a server that does not answer, or is not ready, is asked again; PATIENCE
    """
    retries: RetryConfig = {
        "max_retries": 10_000,  # time is what bounds them
        "retry_timeout": patience or PATIENCE,
        "backoff": {"max_backoff": LONGEST_PAUSE},
    }
    if not root.startswith("s3://"):
        address = f"{root}/{quote(prefix)}"
        return HTTPStore(address, client_options=_client_options(root), retry_config=retries)
    profile = read_profile()
    addresses = _server_addresses(profile.endpoint_url)
    return S3Store(
        root.removeprefix("s3://"),
        prefix=prefix or None,
        config=profile.config,
        credential_provider=profile.provider,
        client_options=_client_options(*addresses),
        retry_config=retries,
    )


def _server_addresses(of_profile: str | None) -> list[str]:
    """The addresses of the server that are set. Raises ConfigError, which repeats none."""
    values = (of_profile, *map(os.environ.get, ENDPOINTS))
    addresses = [address for address in values if address]
    if not all(re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", each) for each in addresses):
        raise ConfigError(
            "Expected http://host or https://host in AWS_ENDPOINT_URL, and nothing secret in it, "
            "but it is no such address. Correct it; keys have variables of their own."
        )
    return addresses


def _client_options(*addresses: str) -> ClientConfig:
    allow_http = any(address.startswith("http://") for address in addresses)
    return {"timeout": LONGEST_REQUEST, "allow_http": allow_http}


@contextmanager
def translate_errors(where: object) -> Iterator[None]:
    """Turn what obstore raises of the object or folder `where` into sentences.

    FileNotFoundError passes, as it does of a local file, unless the whole bucket is missing.
    """
    try:
        yield
    except BaseError as error:
        raise _sentence(where, str(error)) from None
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise _sentence(where, str(error)) from None
        if error.errno is None and type(error) is FileNotFoundError:  # obstore's, with an answer
            raise FileNotFoundError(errno.ENOENT, "No such object", str(where)) from None
        raise


def _sentence(where: object, said: str) -> ServerError:
    """What to tell of an error; of its text only the server's address and status are repeated."""
    address = re.search(r"performing [A-Z]+ (https?://[^/\s]+)", said)
    server = address.group(1) if address else "its server"
    answered = re.search(r"status code: (\d{3})", said)
    status = int(answered.group(1)) if answered else 0
    if PROVIDER in said:
        return ServerError(
            f"Expected keys for {where} from the profile of ~/.aws, but they could not be renewed. "
            f"If it is a login, it is over: renew it with `aws sso login`. What was done is kept: "
            f"run again."
        )
    if METADATA_SERVICE in server:
        return ServerError(
            f"Expected keys for {where}, and found none: neither in the environment "
            f"(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) nor in a profile of ~/.aws, nor from "
            f"this machine's role. Set them, or AWS_SKIP_SIGNATURE=true for public data."
        )
    if "NoSuchBucket" in said:
        return ServerError(
            f"Expected the bucket of {where} at {server}, and found none of this name. Make "
            f"it, or correct its name or AWS_ENDPOINT_URL."
        )
    if status in (401, 403):
        return ServerError(
            f"Expected to be let in to {where}, but {server} refused (status {status}). The "
            f"keys are wrong, or may not list, read and write there: check AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or the profile of ~/.aws."
        )
    if status and status < 500:
        return ServerError(
            f"Expected {server} to serve {where}, but it answered with status {status}. Check "
            f"the URL, AWS_ENDPOINT_URL and AWS_REGION."
        )
    if "not supported" in said:
        return ServerError(
            f"Expected the server of {where} to serve parts of files, and it serves them whole "
            f"only. Copy the file to a local path, or to another server."
        )
    return ServerError(
        f"Expected an answer from {server} for {where}, and got none that helps, though it was "
        f"asked again and again. Check AWS_ENDPOINT_URL and the network; "
        f"what was done is kept: run again when the server is back."
    )
