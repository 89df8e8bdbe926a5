"""``python -m training.launch.torchrun EXITS.json [ARGUMENTS]``: torchrun that says in a file how ranks ended.

It is stopped by SIGTERM, which it passes to the ranks, and by the end of the process that started it. Only the first
signal counts: torchrun's own handler raises at each, a third one would have it leave ranks behind, and the kernel may
tell of a parent's end once for each thread of the parent.
"""

import json
import signal
import sys
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from training.launch.attached import end_with_parent


def stop_once(number: int, frame: FrameType | None) -> None:
    """Have torchrun stop the ranks, and let nothing interrupt it."""
    signal.signal(number, signal.SIG_IGN)
    raise SignalException("asked to stop", signal.Signals(number))


def main() -> int:
    """Returns the exit status: 0, 1 where a rank failed, 128 + the signal that stopped the ranks."""
    signal.signal(signal.SIGTERM, stop_once)
    end_with_parent(signal.SIGTERM)
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
