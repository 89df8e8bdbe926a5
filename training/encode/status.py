"""What encode servers say of themselves, and whether that is what a run wants."""

import json
import time
from typing import Any

import pyarrow.flight as flight

from training.encode.servers import PAUSE_S, NoServer, Servers, check_address, servers_of, told
from training.recipe import Recipe
from training.run import TrainingRun

MATTERS = ("codec", "text", "fps")  # of a recipe, to whoever encodes for it


def server_status(servers: Servers, address: str, *, seconds: float = 10.0) -> dict[str, Any]:
    """What a server says of itself: format, encoder, codec, text, fps, manifests, and counts of its work.

    ValueError: it is no address; pyarrow.flight.FlightError: it cannot be reached, or does not take the token.
    """
    said = servers.act(address, "status", b"", seconds)
    status: dict[str, Any] = json.loads(b"".join(part.to_pybytes() for part in said))
    return status


def check_servers(run: TrainingRun, manifest: str) -> str:
    """The fingerprint of what the run's servers encode with, those in ``file:`` lists too.

    Args:
        manifest: fingerprint of the run's manifests.

    Raises:
        ValueError: none answers; one encodes other data, or for another recipe; two encode with other weights; or what
            is listed is no address.
        OSError: the file with the token cannot be read.
    """
    servers = servers_of(run.encode)
    for address in servers.addresses():
        check_address(address)
    encoder, silent = _asked(servers, run.recipe, manifest)
    if encoder is None:
        raise ValueError(f"no encode server answers: {silent}")
    return encoder


def served_encoder(run: TrainingRun, manifest: str) -> str:
    """As ``check_servers``, for a run that begins: it waits for its first server, and passes over what is no address.

    NoServer: none answers in ``patience_s``; ValueError as there.
    """
    servers = servers_of(run.encode)
    end = time.monotonic() + run.encode.patience_s
    while True:
        encoder, silent = _asked(servers, run.recipe, manifest)
        if encoder is not None:
            return encoder
        if time.monotonic() >= end:
            raise NoServer(f"no encode server answers: {silent}")
        time.sleep(min(PAUSE_S, max(0.0, end - time.monotonic())))


def _asked(servers: Servers, recipe: Recipe, manifest: str) -> tuple[str | None, str]:
    """What the servers that answer encode with, None where none does, and the words of those that do not."""
    silent: list[str] = []
    encoders: dict[str, str] = {}  # fingerprint -> the first server that has it
    for address in servers.addresses():
        try:
            status = server_status(servers, address)
        except (flight.FlightError, ValueError) as problem:
            silent.append(f"{address}: {told(problem)}")
            continue
        if manifest not in status["manifests"]:
            raise ValueError(f"encode server {address} has other manifests than this run, {manifest}")
        for name in MATTERS:
            if status[name] != getattr(recipe, name):
                raise ValueError(f"encode server {address} has {name} {status[name]!r}, not the recipe's")
        encoders.setdefault(status["encoder"], address)
    if len(encoders) > 1:
        raise ValueError(f"encode servers {' and '.join(encoders.values())} encode with other weights or other devices")
    return next(iter(encoders), None), "; ".join(silent) or f"no address is in {', '.join(servers.listed)}"
