"""Encode servers in this process, and clients of them, for the tests of this room."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from benchmarks.encode_server import small_recipe
from tests.training.encode.test_wire import same
from training.data.plan import BatchPlan
from training.encode.answers import EncodeServer
from training.encode.client import EncodeClient
from training.encode.encoder import Encoded, load_encoder
from training.encode.servers import Servers
from training.encode.status import server_status

STEPS, BATCH = 12, 4
RECIPE = small_recipe(STEPS, BATCH)


@contextlib.contextmanager
def serving(*arguments: Any, **options: Any) -> Iterator[EncodeServer]:
    server = EncodeServer(*arguments, **options)
    try:
        yield server
    finally:
        server.end()


def asked(address: str, ticket: bytes, token: str | None = None) -> pa.Table:
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    with flight.connect(address) as client:
        return client.do_get(flight.Ticket(ticket), flight.FlightCallOptions(headers=headers)).read_all()


def client_of(
    servers: Sequence[str], plan: BatchPlan, token: str | None = None, authorities: bytes | None = None, **options: Any
) -> EncodeClient:
    """A client that wants the lite encoder."""
    wanted = load_encoder(None, plan.job.recipe).fingerprint
    return EncodeClient(Servers(tuple(servers), token, authorities), plan, wanted, **options)


def status_at(address: str, token: str | None = None) -> dict[str, Any]:
    return server_status(Servers((address,), token), address)


def batches_equal(found: list[Encoded], wanted: list[Encoded]) -> bool:
    return len(found) == len(wanted) and all(same(a, b) for a, b in zip(found, wanted, strict=True))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
