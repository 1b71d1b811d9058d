"""Connections to object stores and web servers, and messages for their errors.

Credentials come from the environment, which obstore reads, or from the AWS files (`aws_profile`). A
server's answer may repeat them, so a message only has the server's address and the status.
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

PATIENCE = timedelta(minutes=3)  # with a silent server; a signed request expires after 5 minutes
FIRST_PATIENCE = timedelta(seconds=10)  # before any work began
LONGEST_REQUEST = timedelta(minutes=2)
LONGEST_PAUSE = timedelta(seconds=5)
METADATA_SERVICE = "169.254."  # where the machines of a cloud ask for keys
PROVIDER = "External AWS credential provider"  # so obstore calls what `aws_profile` gives it


@cache
def client(root: str) -> S3Store | HTTPStore:
    """The connection to a bucket or web server: one per process, which reuses its sockets."""
    return connect(root)


def connect(root: str, prefix: str = "", patience: timedelta | None = None) -> S3Store | HTTPStore:
    """A new connection, to the part of a bucket or web server under `prefix`.

    patience  how long a request is repeated while the server does not answer; default PATIENCE
    """
    retries: RetryConfig = {
        "max_retries": 10_000,  # the timeout comes first
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
    """Turn errors of obstore about the object or folder `where` into sentences.

    FileNotFoundError passes, as for a local file, unless the whole bucket is missing.
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


def _sentence(where: object, error_text: str) -> ServerError:
    """The message for an error; it repeats only the server's address and the status."""
    address = re.search(r"performing [A-Z]+ (https?://[^/\s]+)", error_text)
    server = address.group(1) if address else "its server"
    status_match = re.search(r"status code: (\d{3})", error_text)
    status = int(status_match.group(1)) if status_match else 0
    if PROVIDER in error_text:
        return ServerError(
            f"Expected keys for {where} from the profile of ~/.aws, but they could not be renewed. "
            f"If it is a login, it has expired: renew it with `aws sso login`. Finished blocks are "
            f"kept: run again."
        )
    if METADATA_SERVICE in server:
        return ServerError(
            f"Expected keys for {where}, and found none: neither in the environment "
            f"(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) nor in a profile of ~/.aws, nor from "
            f"this machine's role. Set them, or AWS_SKIP_SIGNATURE=true for public data."
        )
    if "NoSuchBucket" in error_text:
        return ServerError(
            f"Expected the bucket of {where} at {server}, but there is no such bucket. Create it, "
            f"or correct its name or AWS_ENDPOINT_URL."
        )
    if status in (401, 403):
        return ServerError(
            f"Expected access to {where}, but {server} refused it (status {status}). The keys are "
            f"wrong, or do not allow to list, read and write there: check AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or the profile of ~/.aws."
        )
    if status and status < 500:
        return ServerError(
            f"Expected {server} to serve {where}, but it answered with status {status}. Check "
            f"the URL, AWS_ENDPOINT_URL and AWS_REGION."
        )
    if "not supported" in error_text:
        return ServerError(
            f"Expected the server of {where} to serve parts of files, but it serves only whole "
            f"files. Copy the file to a local path, or to another server."
        )
    return ServerError(
        f"Expected an answer from {server} for {where}, but got none that could be used, though "
        f"the request was repeated. Check AWS_ENDPOINT_URL and the network. Finished blocks are "
        f"kept: run again when the server is back."
    )
