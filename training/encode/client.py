"""The trainer's side of the encode servers: any number of them, any of which may be down, slow or wrong.

As an answer is a pure function of the ticket, it does not matter who gives it: a ticket goes to one server after
another until an answer is whole and is what the plan expects. Ranks and steps begin with different servers, which
spreads the load. A server that fails is left alone for a while that doubles with each failure, and then asked again, so
servers may die, come back, or be added to a file of addresses in the middle of a run.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import torch
from torch import Tensor

from models.codec import LATENT_CHANNELS
from training.data.plan import BatchPlan, Sample
from training.encode import wire
from training.encode.encoder import Encoded
from training.encode.servers import NoServer, Servers, WrongToken, in_order, told

ASIDE_S, LONGEST_ASIDE_S = 0.5, 30.0  # seconds that a server is left alone after its first failure, and at most
LEAST_S = 10.0  # seconds that a server may be silent when patience is at its end
REFUSALS = 3  # rounds in which every server refuses before no patience helps

_log = logging.getLogger(__name__)


class Unanswered(RuntimeError):
    """One server did not give the answer; ``refused`` where it is in order and said that it will not."""

    def __init__(self, words: str, refused: bool = False) -> None:
        super().__init__(words)
        self.refused = refused


@dataclass
class _Aside:
    """A server that failed: how often in a row, when it may be asked again, and its last words."""

    failures: int
    refusals: int
    until: float
    words: str


class EncodeClient:
    """Fetches the batches of one plan.

    Args:
        plan: says what is in every batch.
        encoder: fingerprint of the weights that all servers must encode with.
        patience_s: how long a batch is tried for.
        slow_s: how long a server may be silent before or between samples.
    """

    def __init__(
        self, servers: Servers, plan: BatchPlan, encoder: str, *, patience_s: float = 600.0, slow_s: float = 120.0
    ) -> None:
        self._servers, self._plan, self._encoder = servers, plan, encoder
        self._job = wire.fingerprint(plan.job)
        self._patience_s, self._slow_s = patience_s, slow_s
        self._aside: dict[str, _Aside] = {}
        self._text: list[tuple[torch.dtype, list[int]]] | None = None  # of tokens and pooled, the same for all samples
        self._let_in = False
        self._lock = threading.Lock()  # several threads may fetch, each another step

    def fetch(self, step: int, data_rank: int = 0, data_ranks: int = 1) -> list[Encoded]:
        """The samples of a data rank in a step, in the plan's order, all checked.

        An answer in which clips are replaced, as one server could not read them, is asked for of another server too:
        of each sample the one with fewer bad clips is taken, so a server that lacks a disk does not decide.

        Raises:
            NoServer: none could answer for ``patience_s``, or all refuse to.
            WrongToken: a server does not take the token, and none ever did.
        """
        with self._lock:
            samples = self._plan.samples(step, data_rank, data_ranks)
        ticket = wire.Ticket(job=self._plan.job, step=step, data_rank=data_rank, data_ranks=data_ranks)
        end = time.monotonic() + self._patience_s
        while True:
            servers = in_order(self._servers.addresses(), step, data_rank)
            best: list[Encoded] | None = None
            for server in servers:
                if server in self._aside and time.monotonic() < self._aside[server].until:
                    continue
                try:
                    answer = self._ask(server, ticket, samples, end)
                except Unanswered as problem:
                    self._set_aside(server, problem)
                    continue
                self._aside.pop(server, None)
                agreed = best is not None and [len(each.bad) for each in best] == [len(each.bad) for each in answer]
                best = [min(pair, key=lambda each: len(each.bad)) for pair in zip(best or answer, answer, strict=True)]
                if agreed or not any(each.bad for each in best):
                    break
            if best is not None:
                return best
            hopeless = all(server in self._aside and self._aside[server].refusals >= REFUSALS for server in servers)
            if time.monotonic() >= end or (servers and hopeless):
                raise NoServer(self._words_of_no_server(step, servers, hopeless))
            wakes = [self._aside[server].until for server in servers if server in self._aside]
            time.sleep(max(0.0, min([*wakes, time.monotonic() + 1.0, end]) - time.monotonic()))

    def _ask(self, server: str, ticket: wire.Ticket, samples: Sequence[Sample], end: float) -> list[Encoded]:
        """The whole answer of one server. Unanswered says why there is none; WrongToken as ``fetch`` does."""
        call = _Call(self._servers, server, ticket.write(), self._patience_s + self._slow_s)
        stamp: wire.Stamp | None = None
        answer: list[Encoded] = []
        try:
            while (arrived := call.next(min(self._slow_s, max(LEAST_S, end - time.monotonic())))) is not None:
                self._let_in = True
                if isinstance(arrived, pa.Schema):
                    stamp = wire.read_stamp(arrived)
                    self._check_stamp(stamp, ticket)
                    continue
                if len(answer) == len(samples):
                    raise wire.WireError(f"more than the {len(samples)} samples of the batch")
                encoded = wire.from_record(arrived)
                check(encoded, self._replaced(samples[len(answer)], encoded))
                answer.append(encoded)
            if stamp is None or len(answer) < len(samples):
                raise wire.WireError(f"only {len(answer)} of {len(samples)} samples")
            self._check_text(answer)
        except wire.WireError as problem:
            raise Unanswered(f"sent what it should not: {problem}") from problem
        except flight.FlightUnauthenticatedError as problem:
            words = f"encode server {server} does not let us in: {told(problem)}"
            if not self._let_in:
                raise WrongToken(words) from problem
            raise Unanswered(words) from problem
        except Empty:
            raise Unanswered(f"was silent for more than {self._slow_s:g} s") from None
        except Exception as problem:  # of gRPC, Arrow or an address: whatever it is, another server may do better
            refused = getattr(problem, "extra_info", b"") == wire.REFUSED
            self._let_in |= refused
            raise Unanswered(told(problem), refused) from problem
        finally:
            call.cancel()
        return answer

    def _check_stamp(self, stamp: wire.Stamp, ticket: wire.Ticket) -> None:
        if stamp.encoder != self._encoder:
            raise wire.WireError(f"it encodes with other weights, {stamp.encoder} and not {self._encoder} as this run")
        wanted = wire.Stamp(stamp.encoder, self._job, ticket.step, ticket.data_rank, ticket.data_ranks)
        if stamp != wanted:
            raise wire.WireError(f"an answer to another question, {stamp}, not {wanted}")

    def _replaced(self, sample: Sample, encoded: Encoded) -> Sample:
        """What the plan puts in the place of a sample after the bad clips that the answer names."""
        for attempt, bad in enumerate(encoded.bad, start=1):
            tried = self._replacement(sample, attempt - 1)
            if (bad.clip_id, bad.source_uri) != (tried.clip.clip_id, tried.clip.source_uri):
                raise wire.WireError(
                    f"clip {bad.clip_id} of {bad.source_uri} is said to be bad where {tried.clip.clip_id} of "
                    f"{tried.clip.source_uri} was to be read"
                )
        return self._replacement(sample, len(encoded.bad))

    def _replacement(self, sample: Sample, attempt: int) -> Sample:
        if not attempt:
            return sample
        try:
            with self._lock:
                return self._plan.replacement(sample, attempt)
        except IndexError:
            raise wire.WireError(f"{attempt} bad clips at place {sample.index}, and their bucket has no more") from None

    def _check_text(self, answer: Sequence[Encoded]) -> None:
        """One form of text in all answers; the first answer decides."""
        with self._lock:
            self._text = self._text or text_of(answer[0])
        for encoded in answer:
            if text_of(encoded) != self._text:
                raise wire.WireError(f"text of clip {encoded.clip_id} is {text_of(encoded)}, and was {self._text}")

    def _set_aside(self, server: str, problem: Unanswered) -> None:
        with self._lock:
            before = self._aside.get(server, _Aside(0, 0, 0.0, ""))
            pause = min(LONGEST_ASIDE_S, ASIDE_S * 2 ** min(before.failures, 10))
            refusals = before.refusals + 1 if problem.refused else 0
            self._aside[server] = _Aside(before.failures + 1, refusals, time.monotonic() + pause, str(problem))
        _log.warning("encode server %s is left alone for %g s: %s", server, pause, problem)

    def _words_of_no_server(self, step: int, servers: Sequence[str], hopeless: bool) -> str:
        each = [f"{server}: {self._aside[server].words}" for server in servers if server in self._aside]
        why = "all refuse" if hopeless else f"in {self._patience_s:g} s"
        said = "; ".join(each) or f"no address is in {', '.join(self._servers.listed)}"
        return f"no encode server could answer for step {step} ({why}): {said}"


class _Call:
    """One request, read by a thread of its own, as neither connecting nor reading can be given a time in Flight."""

    def __init__(self, servers: Servers, address: str, ticket: bytes, seconds: float) -> None:
        self._arrived: SimpleQueue[Any] = SimpleQueue()
        self._cancelled = threading.Event()
        self._reader: Any = None
        arguments = servers, address, flight.Ticket(ticket), seconds
        threading.Thread(target=self._read, args=arguments, daemon=True).start()

    def next(self, seconds: float) -> pa.Schema | pa.RecordBatch | None:
        """What arrives next: the schema, the records, None at the end. Empty after so long; raises what went wrong."""
        arrived = self._arrived.get(timeout=seconds)
        if isinstance(arrived, Exception):
            raise arrived
        return arrived

    def cancel(self) -> None:
        """Tell the server, if it has not ended, that nobody listens."""
        self._cancelled.set()
        if self._reader is not None:
            self._reader.cancel()

    def _read(self, servers: Servers, address: str, ticket: Any, seconds: float) -> None:
        try:
            with servers.connect(address) as client:
                self._reader = client.do_get(ticket, servers.options(seconds))
                self._arrived.put(self._reader.schema)
                for chunk in self._reader:
                    if self._cancelled.is_set():
                        return
                    self._arrived.put(chunk.data)
            self._arrived.put(None)
        except Exception as problem:
            self._arrived.put(problem)


def check(encoded: Encoded, sample: Sample) -> None:
    """WireError unless it is this sample, in its shape, and all its numbers are finite."""
    if (encoded.index, encoded.clip_id) != (sample.index, sample.clip.clip_id):
        raise wire.WireError(
            f"clip {encoded.clip_id} at place {encoded.index}, where {sample.clip.clip_id} at {sample.index} belongs"
        )
    wanted = [LATENT_CHANNELS, *sample.shape.latent]
    if encoded.latents.dtype != torch.float32 or list(encoded.latents.shape) != wanted:
        found = f"{encoded.latents.dtype} {list(encoded.latents.shape)}"
        raise wire.WireError(f"latents of clip {encoded.clip_id} are {found}, not {torch.float32} {wanted}")
    if encoded.tokens.ndim != 2 or encoded.pooled.ndim != 1 or encoded.tokens.dtype != encoded.pooled.dtype:
        raise wire.WireError(f"text of clip {encoded.clip_id} is {text_of(encoded)}, not [tokens, width] and [width]")
    for name in wire.TENSORS:
        if not _finite(getattr(encoded, name)):
            raise wire.WireError(f"{name} of clip {encoded.clip_id} are not finite")


def _finite(tensor: Tensor) -> bool:
    """One pass, where torch.isfinite(tensor).all() makes a tensor of booleans: ten times as fast."""
    least, most = torch.aminmax(tensor)  # a NaN is both
    return bool(torch.isfinite(least) and torch.isfinite(most))


def text_of(encoded: Encoded) -> list[tuple[torch.dtype, list[int]]]:
    """Dtype and shape of tokens and of pooled."""
    return [(tensor.dtype, list(tensor.shape)) for tensor in (encoded.tokens, encoded.pooled)]
