"""The profile of the AWS files (~/.aws): who gives keys, the region, and the server's address.

Why boto3: a profile may hold keys, but also a login (SSO), a role, or a program that gives keys.
boto3 knows all of them, and renews keys that expire. It is an extra, since it takes 34 MB, and 0.4
seconds to import: keys of the environment need none, and obstore itself reads them.

Keys never leave the process that read them: whoever opens a store does so by its URL, and asks
here again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet.errors import ConfigError

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Config

FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
PROFILES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")  # as boto3 asks for them
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
YES = {"1", "true", "on", "yes", "y"}  # as obstore reads AWS_SKIP_SIGNATURE
# obstore asks again 5 minutes before this. boto3 renews keys that last for less than 15 minutes.
LIFETIME = timedelta(minutes=10)


@dataclass(frozen=True)
class Profile:
    """What a profile says and the environment does not; None is for what neither says.

    provider  gives keys, and renews them; None also where the environment or a role gives them
    """

    provider: Boto3CredentialProvider | None = None
    region: str | None = None
    endpoint_url: str | None = None

    @property
    def config(self) -> S3Config:
        """Region and address, as obstore names them: never a key."""
        config: S3Config = {}
        if self.region:
            config["region"] = self.region
        if self.endpoint_url:
            config["endpoint"] = self.endpoint_url
        return config


def read_profile() -> Profile:
    """The profile that AWS_PROFILE names, else the default one; an empty one if there is no file.

    Raises ConfigError where it gives no keys, though none are in the environment, and where boto3,
    which reads it, is missing then.
    """
    names = [os.environ[variable] for variable in PROFILES if os.environ.get(variable)]
    if not names and not any(_file(variable).is_file() for variable in FILES):
        return Profile()
    is_anonymous = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in YES
    needs_keys = "AWS_ACCESS_KEY_ID" not in os.environ and not is_anonymous
    name = names[0] if names else "default"
    if find_spec("boto3"):
        return _by_boto3(name, needs_keys)
    if needs_keys:
        raise ConfigError(
            f"Expected boto3, which reads the profile {name!r} of ~/.aws, but it is not installed. "
            f"Install it (pip install boto3), or give keys by the environment "
            f"(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or AWS_SKIP_SIGNATURE=true for "
            f"public data."
        )
    return Profile()


def _by_boto3(name: str, needs_keys: bool) -> Profile:
    from botocore.exceptions import BotoCoreError, ClientError, ConfigParseError, ProfileNotFound
    from obstore.auth.boto3 import Boto3CredentialProvider

    provider = None
    try:
        session = _session()
        settings = session.get_scoped_config()
        if needs_keys and session.get_credentials() is not None:
            provider = Boto3CredentialProvider(session, ttl=LIFETIME)
            provider()  # so that a login that is over is told of here, and not by obstore
    # Messages of boto3 may quote a file, or what a program answered: they are not repeated.
    except ConfigParseError:
        raise ConfigError(
            "Expected AWS settings in ~/.aws/config and ~/.aws/credentials (or the files that "
            "AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE name), but one of them does not read "
            "as such. Mend it, or set the variables of the environment."
        ) from None
    except ProfileNotFound:
        raise ConfigError(
            f"Expected a profile {name!r} in ~/.aws/config or ~/.aws/credentials, and found none. "
            f"Correct AWS_PROFILE, or add it with `aws configure`."
        ) from None
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        raise ConfigError(
            f"Expected keys from the profile {name!r} of ~/.aws, and got none "
            f"({type(error).__name__}). If it is a login, it is over: renew it with "
            f"`aws sso login`. Else `aws sts get-caller-identity` says what is wrong."
        ) from None
    return Profile(
        provider=provider,
        region=None if _is_set(REGIONS) else settings.get("region"),
        endpoint_url=None if _is_set(ENDPOINTS) else settings.get("endpoint_url"),
    )


@cache
def _session() -> Any:
    """The session of this process: it keeps the keys, so that a role is asked for them once.

    One of botocore, not boto3: of the latter the provider takes the region, over that of the
    environment.
    """
    from botocore.session import Session

    return Session()


def _file(variable: str) -> Path:
    return Path(os.environ.get(variable) or FILES[variable]).expanduser()


def _is_set(variables: tuple[str, ...]) -> bool:
    return not set(variables).isdisjoint(os.environ)
