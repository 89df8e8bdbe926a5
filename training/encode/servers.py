"""Which encode servers a run has, and how they are called: addresses, lists of them, the token, the connection."""

import ipaddress
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.flight as flight

from training.run import EncodeConfig

SCHEMES = ("grpc", "grpc+tcp", "grpc+tls")
PAUSE_S = 1.0  # between two rounds in which all servers are asked

T = TypeVar("T")

_log = logging.getLogger(__name__)


class NoServer(RuntimeError):
    """No server could answer; the message says for each what was last wrong."""


class WrongToken(PermissionError):
    """The servers do not take this client's token, or want one and it has none."""


@dataclass(frozen=True)
class Servers:
    """The servers of a run, and what they want to be shown.

    Attributes:
        listed: addresses, ``grpc://host:port`` or ``grpc+tls://host:port``; or ``file:///path`` of a file with one
            address a line, which is read again whenever the addresses are asked for.
        token: sent to every address in the list; None where the servers want none.
        authorities: PEM certificates that vouch for servers with TLS; by default the system's.

    Raises:
        ValueError: there is none, or an address is none.
    """

    listed: tuple[str, ...]
    token: str | None = None
    authorities: bytes | None = None
    _last: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)  # what each file last said

    def __post_init__(self) -> None:
        if not self.listed:
            raise ValueError("there is no encode server to ask")
        for server in self.listed:
            if urlsplit(server).scheme != "file":
                check_address(server)

    def addresses(self) -> list[str]:
        """The servers there are now, each once. A file that cannot be read has the addresses that it last had."""
        found: list[str] = []
        for server in self.listed:
            if urlsplit(server).scheme != "file":
                found.append(server)
                continue
            try:
                self._last[server] = read_list(server)
            except (OSError, UnicodeDecodeError) as problem:
                _log.warning("list of encode servers %s cannot be read: %s", server, problem)
            found += self._last.get(server, [])
        return list(dict.fromkeys(found))

    def connect(self, address: str) -> flight.FlightClient:
        """A connection to one server. ValueError: it is no address.

        A server on this machine is called directly, also where the environment names a proxy for ``http``: gRPC would
        go through that, and the proxy would call a server on its own machine.
        """
        host = check_address(address)
        options = [("grpc.enable_http_proxy", 0)] if is_loopback(host) else None
        return flight.connect(address, tls_root_certs=self.authorities, generic_options=options)

    def options(self, seconds: float) -> flight.FlightCallOptions:
        """Options of a call that shows the token and ends after so many seconds, whatever its server does."""
        shown = [(b"authorization", f"Bearer {self.token}".encode())] if self.token else []
        return flight.FlightCallOptions(seconds, headers=shown)

    def act(self, address: str, action: str, body: bytes = b"", seconds: float = 10.0) -> list[Any]:
        """The buffers with which a server answers an action.

        ValueError: it is no address; pyarrow.flight.FlightError: it cannot be reached, or refuses.
        """
        with self.connect(address) as client:
            results: Iterable[Any] = client.do_action(flight.Action(action, body), self.options(seconds))
            return [result.body for result in results]


def servers_of(encode: EncodeConfig) -> Servers:
    """The servers of a run. ValueError or OSError: an address is none, or the file with the token holds none."""
    return Servers(encode.servers, read_token(encode.token_file) if encode.token_file else None)


def first_answer(servers: Servers, ask: Callable[[str], T], patience_s: float) -> T:
    """What ``ask`` returns for the first address for which it raises nothing; servers are asked in rounds.

    NoServer: none answered before patience ended; WrongToken: one does not take the token.
    """
    end = time.monotonic() + patience_s
    while True:
        words = [f"no address is in {', '.join(servers.listed)}"]
        for place, address in enumerate(servers.addresses()):
            try:
                return ask(address)
            except flight.FlightUnauthenticatedError as problem:
                raise WrongToken(f"encode server {address} does not let us in: {told(problem)}") from problem
            except (flight.FlightError, pa.ArrowException, ValueError) as problem:
                words[place:] = [f"{address}: {told(problem)}"]
        if time.monotonic() >= end:
            raise NoServer(f"no encode server answers: {'; '.join(words)}")
        time.sleep(min(PAUSE_S, max(0.0, end - time.monotonic())))


def read_list(uri: str) -> list[str]:
    """The addresses in a file: one a line, "#" begins a comment. OSError, UnicodeDecodeError: it cannot be read."""
    with open(url2pathname(urlsplit(uri).path)) as file:
        lines = [line.partition("#")[0].strip() for line in file]
    return [line for line in lines if line]


def check_address(server: str) -> str:
    """The host of a server's address. ValueError: it is no address."""
    parts = urlsplit(server)
    try:
        whole = parts.scheme in SCHEMES and parts.hostname and parts.port
    except ValueError:  # a port that is no number
        whole = None
    if not whole:
        raise ValueError(
            f"{server!r} is no address of an encode server; it is grpc://host:port or grpc+tls://host:port"
        )
    return str(parts.hostname)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def in_order(servers: Sequence[str], step: int, data_rank: int) -> list[str]:
    """The servers in the order in which they are asked: ranks take turns with the first, and what a dead server leaves
    undone goes to all others alike."""
    if not servers:
        return []
    first = servers[(step + data_rank) % len(servers)]
    others = [server for server in servers if server != first]
    random.Random(f"{step} {data_rank}").shuffle(others)
    return [first, *others]


def read_token(path: str | Path) -> str:
    """The token in a file. ValueError: it is empty, or has characters that no header may."""
    token = Path(path).read_text().strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(f"token file {path} holds no token: one line of printable ASCII characters")
    return token


def told(problem: BaseException) -> str:
    """The words of an error of Flight, without what gRPC says around them."""
    words = str(problem).removeprefix("Flight returned unavailable error, with message: ")
    for end in (". gRPC client debug context", ". Detail:", ". Client context"):
        words = words.partition(end)[0]
    return " ".join(words.split()) or type(problem).__name__
