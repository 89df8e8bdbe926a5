"""Training on this machine, or on several as one of them: torchrun as a child that never outlives us.

    python -m training.launch RUN.json --processes 8 [--machines 4 --endpoint HOST:PORT]

Starts one rank a device, passes on what they print, follows their metrics, and says which rank failed first. The
trainer resumes from its newest checkpoint by itself, so to restart it is to start it again.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread

from training.launch.attached import PARENT
from training.launch.failures import LINES, Failure, RankFailed, ended, first_failure, reported
from training.launch.listener import (
    GRACE_S,
    POLL_S,
    Listener,
    Outcome,
    Restarts,
    calmly,
    clear_errors,
    tell,
    tell_metrics,
    write_run,
)
from training.observe.progress import Lines
from training.run import TrainingRun

KILL_S = 15  # that torchrun has, after the ranks' grace, to kill those that are left
RANK_LINE = re.compile(r"\[rank (\d+)\] ?(.*)")
STOPPED = re.compile(r"stopped at step \d+ of \d+")


@dataclass(frozen=True)
class Machines:
    """The machines of a run; each starts the same, with as many ranks. ``endpoint`` is host:port of one of them."""

    count: int = 1
    endpoint: str = "localhost:0"
    name: str = "contentv"  # of the run, where several meet at one endpoint

    def arguments(self, attempt: int) -> list[str]:
        """torchrun's arguments; each attempt meets under another name, as nobody can join a meeting that has failed."""
        arguments = ["--nnodes", str(self.count), "--rdzv-backend", "c10d", "--rdzv-endpoint", self.endpoint]
        arguments += ["--rdzv-id", f"{self.name}-{attempt}"]
        return arguments if self.count > 1 else [*arguments, "--local-addr", "localhost"]


def launch(
    run: TrainingRun,
    processes: int,
    listener: Listener | None = None,
    *,
    restarts: int = 0,
    grace_s: int = GRACE_S,
    machines: Machines = Machines(),
    module: str = "training.main",
) -> Outcome:
    """Train with ``processes`` ranks on this machine, and start again after a failure.

    Args:
        restarts: how often it is started again without a new checkpoint in between.
        grace_s: time that ranks have to save a checkpoint once they are to stop, after which they are killed. It holds
            too where this process itself is killed meanwhile.
        module: what each rank runs, with the run file as its argument.

    RankFailed, with the error of the rank that failed first, where restarts do not help or are used up. Whatever else
    is raised in here, by a signal or a listener, stops the ranks first. No process is left in any case.
    """
    listener = listener or Listener()
    run_file, logs = write_run(run), run.folder / "logs"
    logs.mkdir(exist_ok=True)
    metrics, tries = Lines(run.folder / "metrics.jsonl"), Restarts(run, restarts)
    while True:
        errors = clear_errors(run)
        with TemporaryDirectory(prefix="contentv-launch-") as folder:
            exits = Path(folder) / "exits.json"
            command = [sys.executable, "-m", "training.launch.torchrun", str(exits), *machines.arguments(tries.made)]
            command += ["--nproc-per-node", str(processes), "--max-restarts", "0", "--shutdown-timeout", str(grace_s)]
            command += ["--log-dir", str(logs), "--tee", "3", "--module", "training.launch.attached", module]
            ranks = Ranks([*command, str(run_file)], environment(processes), grace_s, exits)
            status = ranks.follow(listener, metrics)
            failure = first_failure(reported(errors), ranks.failures())
        if failure is None and status == 0:
            return Outcome(ranks.stopped, tries.made)
        if failure is None and (ranks.stopped or listener.stop.is_set()):
            return Outcome(ranks.stopped or "stopped; no rank said at which step", tries.made)
        failure = failure or RankFailed(f"torchrun ended with status {status}\n\n" + "\n".join(ranks.own_last_words))
        tries.again(failure, listener)


def environment(processes: int) -> dict[str, str]:
    """The environment of torchrun and its ranks: this one's, and how they share the cores and name their lines."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    return (
        {"OMP_NUM_THREADS": str(threads)}
        | os.environ
        | {
            PARENT: str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
            "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
        }
    )


class Ranks:
    """The ranks of one attempt: torchrun, in a session of its own, which writes to ``exits`` how ranks ended."""

    def __init__(self, command: list[str], environment: dict[str, str], grace_s: int, exits: Path) -> None:
        self.stopped: str | None = None
        self.last_words: dict[int, deque[str]] = {}
        self.own_last_words: deque[str] = deque(maxlen=LINES)
        self._grace_s, self._exits = grace_s, exits
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._lines: SimpleQueue[str | None] = SimpleQueue()  # None: torchrun has ended
        self._ended = False
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def follow(self, listener: Listener, metrics: Lines) -> int:
        """Pass on lines and metrics until torchrun has ended; returns its exit status."""
        try:
            while not (listener.stop.is_set() or self._ended):
                self._pass_on(listener.on_line)
                tell(listener, metrics)
            if listener.stop.is_set():
                self._stop(listener.on_line)
            self._reap()
        except BaseException:
            self._stop(calmly(listener.on_line))
            self._reap()
            tell_metrics(listener, metrics)
            raise
        tell(listener, metrics)
        return self._process.returncode

    def _stop(self, on_line: Callable[[str], object]) -> None:
        """End the ranks, with their grace. Nothing but lines is passed on: who stops us may not wait for long.

        Where a second signal breaks this off, torchrun goes on with it alone.
        """
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s + KILL_S
        while not self._ended and time.monotonic() < deadline:
            self._pass_on(on_line)

    def _reap(self) -> None:
        """Wait for torchrun, which has ended or should have. If it is killed, the kernel ends the ranks."""
        try:
            self._process.wait(KILL_S if self._ended else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _pass_on(self, on_line: Callable[[str], object]) -> None:
        """Pass on the lines that come within ``POLL_S``, and note the end."""
        until = time.monotonic() + POLL_S
        while (left := until - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except Empty:
                return
            if line is None:
                self._ended = True
                return
            self._note(line)
            on_line(line)

    def _note(self, line: str) -> None:
        ours = RANK_LINE.match(line)
        if not ours:
            self.own_last_words.append(line)
            return
        self.last_words.setdefault(int(ours[1]), deque(maxlen=LINES)).append(ours[2])
        if STOPPED.fullmatch(ours[2]):
            self.stopped = ours[2]

    def failures(self) -> list[Failure]:
        """How ranks ended that failed, as torchrun saw it."""
        if not self._exits.exists():
            return []
        return [
            ended(**end, last_words=self.last_words.get(end["rank"], ())) for end in json.loads(self._exits.read_text())
        ]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, also for a run that was stopped; 1 for one that failed, 2 where it would again."""
    parser = argparse.ArgumentParser(prog="python -m training.launch", description="Train on this machine.")
    parser.add_argument("run", type=Path, metavar="RUN.json", help="such as OUTPUT/training.json of a flow run")
    parser.add_argument("--processes", type=int, default=1, help="ranks on this machine: its devices")
    parser.add_argument("--restarts", type=int, default=0, help="after a failure, from the last checkpoint")
    parser.add_argument("--machines", type=int, default=1, help="that start this command")
    parser.add_argument("--endpoint", default="localhost:0", metavar="HOST:PORT", help="one of them, and a free port")
    options = parser.parse_args(arguments)
    listener = Listener(on_line=lambda line: print(line, flush=True))
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: listener.stop.set())
    run = TrainingRun.model_validate_json(options.run.read_text())
    machines = Machines(options.machines, options.endpoint)
    try:
        launch(run, options.processes, listener, restarts=options.restarts, machines=machines)
    except RankFailed as failure:
        print(failure, file=sys.stderr)
        return 1 if failure.retry else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
