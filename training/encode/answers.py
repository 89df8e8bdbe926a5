"""The answers of an encode server: batches, its status, and prompts embedded, over Arrow Flight."""

import hmac
import json
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
from pydantic import ValidationError

from training.data.clips import ClipError
from training.data.manifest import Manifest, ManifestError
from training.data.plan import BatchPlan, Job, Sample
from training.encode import wire
from training.encode.encoder import Encoder
from training.encode.prompts import Prompt
from training.encode.reading import Read
from training.encode.servers import is_loopback
from training.encode.status import MATTERS
from training.recipe import Recipe

PLANS_KEPT = 4  # jobs that are answered without working their plan out again
WORDS = 2000  # characters of an error: they travel in headers, which have 8 KB
READERS = 4
AHEAD = 2  # clips of a request that are read before they are encoded, so that readers and the device work at once
ACTIONS = {
    "status": "What this server encodes, and how busy it is, as JSON",
    "embed": 'The embedding of a prompt, {"prompt": "..."}, as an Arrow stream of one record',
}

_log = logging.getLogger(__name__)


class EncodeServer(flight.FlightServerBase):
    """Answers tickets, from its construction until ``shutdown``.

    Args:
        recipe: for whose codec, text encoder and frame rate ``encoder`` was loaded; jobs must want the same.
        port: 0 takes a free one.
        token: what clients must show, as ``authorization: Bearer ...``.
        certificate: a TLS certificate and its key, PEM.
        readers: clips that are read at the same time, for all requests. The device encodes one after the other.

    Raises:
        ValueError: ``host`` is not this machine's loopback, and there is no token.
        OSError: the address cannot be listened on.
    """

    def __init__(
        self,
        encoder: Encoder,
        recipe: Recipe,
        manifests: Sequence[Manifest],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        certificate: tuple[bytes, bytes] | None = None,
        readers: int = READERS,
    ) -> None:
        if token is None and not is_loopback(host):
            raise ValueError(f"{host} can be reached from other machines: that needs a token, from --token-file")
        self._encoder, self._recipe = encoder, recipe
        self._manifests = {manifest.fingerprint: manifest for manifest in manifests}
        self._plans: OrderedDict[str, BatchPlan] = OrderedDict()
        self._planning = threading.Lock()
        self._readers = ThreadPoolExecutor(readers, "reader")
        self._counting = threading.Lock()
        self._counts = {"requests": 0, "working": 0, "samples": 0, "bad_clips": 0, "prompts": 0, "refused": 0}
        self._ending = threading.Event()
        self.scheme = "grpc+tls" if certificate else "grpc"
        super().__init__(
            f"{self.scheme}://{_bracketed(host)}:{port}",
            tls_certificates=[certificate] if certificate else None,
            middleware={"token": _TokenCheck(token)} if token else None,
        )
        self.address = f"{self.scheme}://{_bracketed(host)}:{self.port}"

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.GeneratorStream:
        """The ticket's samples, each sent when it is encoded."""
        try:
            asked = wire.read_ticket(ticket.ticket)
            plan, samples = self._samples(asked)
        except (wire.WireError, ManifestError, ValueError, IndexError) as problem:
            self._count("refused")
            raise _refusal(str(problem)) from problem
        stamp = wire.Stamp(
            self._encoder.fingerprint, wire.fingerprint(asked.job), asked.step, asked.data_rank, asked.data_ranks
        )
        self._count("requests")
        return flight.GeneratorStream(stamp.schema(), self._records(plan, samples, stamp))

    def status(self) -> dict[str, Any]:
        """What this server encodes, and how busy it is."""
        with self._counting:
            counts = dict(self._counts)
        return {
            "format": wire.FORMAT,
            "encoder": self._encoder.fingerprint,
            "codec": self._recipe.codec,
            "text": self._recipe.text,
            "fps": self._recipe.fps,
            "manifests": sorted(self._manifests),
            **counts,
        }

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        return list(ACTIONS.items())

    def do_action(self, context: Any, action: flight.Action) -> list[flight.Result]:
        if action.type == "status":
            return [flight.Result(pa.py_buffer(json.dumps(self.status()).encode()))]
        if action.type == "embed":
            return [flight.Result(self._embedded(action.body.to_pybytes()))]
        raise _refusal(f"there is no action {action.type!r}, only {' and '.join(ACTIONS)}")

    def _embedded(self, asked: bytes) -> pa.Buffer:
        try:
            if len(asked) > wire.TICKET_BYTES:
                raise wire.WireError(f"a prompt of {len(asked)} bytes, and the most is {wire.TICKET_BYTES}")
            prompt = Prompt.model_validate_json(asked).prompt
        except (wire.WireError, ValidationError) as problem:
            self._count("refused")
            raise _refusal(f"this is no prompt: {problem}") from problem
        self._count("prompts")
        return wire.text_to_stream(self._encoder.text_of(prompt), self._encoder.fingerprint)

    def end(self) -> None:
        """Stop after the samples that are being encoded; requests that have more to come are told to go elsewhere."""
        self._ending.set()
        self.shutdown()
        self._readers.shutdown(cancel_futures=True)

    def _samples(self, asked: wire.Ticket) -> tuple[BatchPlan, list[Sample]]:
        """The ticket's plan and samples. ValueError, ManifestError or IndexError say why there are none."""
        recipe = asked.job.recipe
        for field in MATTERS:
            wanted, here = getattr(recipe, field), getattr(self._recipe, field)
            if wanted != here:
                raise ValueError(f"recipe {recipe.name} wants {field} {wanted!r}, and this server has {here!r}")
        if asked.data_rank >= asked.data_ranks:
            raise ValueError(f"data rank {asked.data_rank} is none of {asked.data_ranks}, which count from 0")
        with self._planning:
            plan = self._plan(asked.job)
            if asked.step >= plan.steps:
                raise IndexError(f"recipe {recipe.name} has {plan.steps} steps from 0, and none is {asked.step}")
            return plan, plan.samples(asked.step, asked.data_rank, asked.data_ranks)

    def _plan(self, job: Job) -> BatchPlan:
        key = wire.fingerprint(job)
        if key not in self._plans:
            if job.manifest not in self._manifests:
                here = ", ".join(sorted(self._manifests))
                raise ManifestError(f"the job is for manifest {job.manifest}, and this server has {here}")
            self._plans[key] = BatchPlan(self._manifests[job.manifest], job)
            if len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _records(self, plan: BatchPlan, samples: Sequence[Sample], stamp: wire.Stamp) -> Iterator[pa.RecordBatch]:
        """Clips are read ahead while the device has others, and a slow receiver holds up nobody else."""
        self._count("working")
        reading: deque[Future[Read]] = deque()
        upcoming = iter(samples)
        try:
            for _ in samples:
                for later in islice(upcoming, AHEAD - len(reading)):
                    reading.append(self._readers.submit(self._encoder.read, later, plan))
                read = reading.popleft().result()
                if self._ending.is_set():
                    raise flight.FlightUnavailableError("this server is being stopped")
                record = wire.to_record(self._encoder.encode(read), stamp)
                self._count("samples")
                self._count("bad_clips", len(read.bad))
                yield record
        except ClipError as problem:
            _log.warning("%s", problem)
            raise _refusal(str(problem)) from problem
        except (flight.FlightError, GeneratorExit):
            raise
        except Exception as problem:  # of one request: others, and other samples, may well go on
            _log.exception("step %d, data rank %d", stamp.step, stamp.data_rank)
            raise flight.FlightServerError(f"{type(problem).__name__}: {problem}"[:WORDS]) from problem
        finally:
            for each in reading:
                each.cancel()
            self._count("working", -1)

    def _count(self, what: str, by: int = 1) -> None:
        with self._counting:
            self._counts[what] += by


class _TokenCheck(flight.ServerMiddlewareFactory):
    """Lets nothing through that does not show the token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._wanted = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: dict[str, list[Any]]) -> None:
        shown = headers.get("authorization", [])
        found = shown[0] if len(shown) == 1 else b""
        if not hmac.compare_digest(found.encode() if isinstance(found, str) else found, self._wanted):
            raise flight.FlightUnauthenticatedError("the token is wrong" if shown else "this server wants a token")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _refusal(words: str) -> flight.FlightServerError:
    return flight.FlightServerError(words[:WORDS], extra_info=wire.REFUSED)
