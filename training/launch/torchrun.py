"""``python -m training.launch.torchrun EXITS.json [ARGUMENTS]``: torchrun that says in a file how ranks ended.

It is stopped by SIGTERM, which it passes to the ranks, and by the end of the process that started it. Only the first
signal stops: torchrun's own handler raises at each, a third one would have it leave ranks behind, and the kernel may
tell of a parent's end once for each thread of the parent.

Once the parent has gone nobody reads what the ranks print. Their lines then go to /dev/null: torchrun would fail to
write them, and say so at length, while its ranks' grace runs out.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from training.launch.attached import PARENT, end_with_parent


class StopOnce:
    """The handler of SIGTERM: has torchrun stop the ranks once, and lets no later signal interrupt it."""

    def __init__(self, parent: int) -> None:
        self._parent, self._stopping = parent, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getppid() != self._parent:
            silence()
        if not self._stopping:
            self._stopping = True
            raise SignalException("asked to stop", signal.Signals(number))


def silence() -> None:
    """Put standard output and standard error of this process on /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def plain_messages() -> None:
    """Have torch's log messages formatted by Python alone.

    Torch's own formatter imports torch._dynamo and sympy for the first exception that it formats. That takes 20 s and
    more on a busy machine, at the very time when ranks are to be ended.
    """
    plain = logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s", "%H:%M:%S")
    for name in logging.root.manager.loggerDict:  # torch gives several of its loggers a handler of their own
        if name.partition(".")[0] == "torch":
            for handler in logging.getLogger(name).handlers:
                handler.setFormatter(plain)


def main() -> int:
    """Returns the exit status: 0, 1 where a rank failed, 128 + the signal that stopped the ranks."""
    signal.signal(signal.SIGTERM, StopOnce(int(os.environ.get(PARENT, os.getppid()))))
    end_with_parent(signal.SIGTERM)
    plain_messages()
    exits = Path(sys.argv[1])
    try:
        run(parse_args(["--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT", *sys.argv[2:]]))
    except ChildFailedError as failed:
        ended = [
            {"rank": rank, "status": failure.exitcode, "time": failure.timestamp}
            for rank, failure in failed.failures.items()
        ]
        exits.write_text(json.dumps(ended))
        return 1
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
