"""A Dask scheduler that is there already: is it one, and may this run speak with it.

Why not leave that to Dask's client: it repeats a refused connection for half a minute, waits for
ever for a program that says nothing, and shows what another program says as an error of memory.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Client, Security
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.core import connect
from distributed.comm.registry import get_backend

from unet.errors import ConfigError, RunError, inner_cause

NETWORK_SCHEMES = ("tcp", "tls", "ws", "wss")
ENCRYPTED_SCHEMES = ("tls", "wss")
LAST_PORT = 65535
START_SECONDS = 3.0  # for a scheduler that is being started just now
REACH_SECONDS = 10.0
SECONDS_BETWEEN_TRIES = 0.2
OTHER_PROGRAM = (
    "what answers there does not speak as one: {}. It may be another program, want TLS (tls://) or "
    "have none, or have other keys"
)
WHAT_TO_DO = (
    "Start it, or correct its address in `predict: scheduler` or DASK_SCHEDULER_ADDRESS; without "
    "both, a run starts its own workers."
)


@contextmanager
def scheduler_client(address: str) -> Iterator[Client]:
    """A client of the scheduler at `address`, with the TLS keys of the site's Dask settings.

    Raises ConfigError where the address or the keys are wrong, and RunError where no scheduler
    answers, in seconds.
    """
    connection = _connection_arguments(address)
    _reach(address, connection)
    _refuse_other_program(address, connection)
    try:
        client = Client(address)
    except OSError as error:
        raise _no_scheduler(address, _cause(error)) from error
    with client:
        yield client


def _connection_arguments(address: str) -> dict[str, Any]:
    """What Dask connects with: the TLS keys, if the site has them."""
    try:
        scheme, place = parse_address(address)
        get_backend(scheme)
        if scheme in NETWORK_SCHEMES and not 0 < parse_host_port(place)[1] <= LAST_PORT:
            raise ValueError(f"its port is not in 1-{LAST_PORT}")
    except ValueError as error:
        raise ConfigError(
            f"Expected the address of a Dask scheduler, such as tcp://host:8786, in "
            f"`predict: scheduler` or DASK_SCHEDULER_ADDRESS, got {address!r}: {error}. Correct it."
        ) from error
    try:
        arguments: dict[str, Any] = Security().get_connection_args("client")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"Expected TLS keys that can be used in the Dask settings of this site "
            f"(distributed.comm.tls), but: {error}. Correct ca-file, client.cert and client.key."
        ) from error
    encrypted = scheme in ENCRYPTED_SCHEMES
    if encrypted and arguments["ssl_context"] is None:
        raise ConfigError(
            f"Expected TLS keys for the Dask scheduler {address}, found none. Set ca-file, "
            f"client.cert and client.key of distributed.comm.tls in Dask's settings "
            f"(~/.config/dask/, or DASK_DISTRIBUTED__COMM__TLS__CA_FILE and so on)."
        )
    if arguments["require_encryption"] and not encrypted:
        raise ConfigError(
            f"Expected an address with TLS, such as tls://host:8786, since the Dask settings of "
            f"this site require encryption (distributed.comm.require-encryption), got {address}."
        )
    return arguments


def _reach(address: str, connection: dict[str, Any]) -> None:
    """Connect once to the host and port, so that what the system says is known and told."""
    scheme, place = parse_address(address)
    if scheme not in NETWORK_SCHEMES:
        return
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection(parse_host_port(place), REACH_SECONDS) as plain:
                if scheme in ENCRYPTED_SCHEMES:
                    connection["ssl_context"].wrap_socket(plain).close()
        except ConnectionRefusedError as error:
            if time.monotonic() > end:
                raise _no_scheduler(address, str(error)) from error
            time.sleep(SECONDS_BETWEEN_TRIES)
        except ssl.SSLError as error:
            raise _no_scheduler(address, OTHER_PROGRAM.format(error)) from error
        except (OSError, UnicodeError) as error:
            raise _no_scheduler(address, str(error)) from error
        else:
            return


def _refuse_other_program(address: str, connection: dict[str, Any]) -> None:
    """Ask whoever answers what it is. Raises RunError where that is no scheduler."""
    try:
        found = asyncio.run(_identity(address, connection))
    except Exception as error:  # what another program says may end in any error
        raise _no_scheduler(address, OTHER_PROGRAM.format(_cause(error))) from error
    if found != "Scheduler":
        raise _no_scheduler(address, f"what answers there is a {found} of Dask")


async def _identity(address: str, connection: dict[str, Any]) -> str:
    seconds = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))

    async def ask() -> str:
        comm = await connect(address, timeout=seconds, **connection)
        try:
            await comm.write({"op": "identity", "reply": True})
            return str((await comm.read())["type"])
        finally:
            comm.abort()

    try:
        return await asyncio.wait_for(ask(), seconds)
    except TimeoutError as error:
        raise TimeoutError(f"it says nothing for {seconds:.3g} s") from error


def _no_scheduler(address: str, why: str) -> RunError:
    return RunError(f"Expected a Dask scheduler at {address}, but {why}. {WHAT_TO_DO}")


def _cause(error: BaseException) -> str:
    bottom = inner_cause(error)
    if not isinstance(bottom, OSError):
        return "what it says is no message of Dask"
    return str(bottom).removesuffix(".")
