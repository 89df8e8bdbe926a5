"""The progress of a run, as it writes it: files followed line by line while they grow, and metrics for people."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MetricsLine = dict[str, Any]  # of OUT/metrics.jsonl, as ``Metrics.line`` makes it


class Lines:
    """Reads the lines that were added to a file since the last time; one that is half written waits.

    A trainer that resumes cuts its metrics off at its checkpoint, in place or by a new file: then all come again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at, self._file, self._last = 0, 0, b""

    def new(self) -> Iterator[str]:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            inode = os.fstat(file.fileno()).st_ino
            file.seek(self._at - len(self._last))
            if inode != self._file or file.read(len(self._last)) != self._last:
                self._at, self._file, self._last = 0, inode, b""
                file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at, self._last = self._at + len(line), line
                yield line.decode(errors="replace").rstrip("\n")


class History:
    """The metrics of a run by step. A line of a step replaces those of this and later steps, as a resume does."""

    def __init__(self) -> None:
        self.lines: list[MetricsLine] = []

    def add(self, line: MetricsLine) -> None:
        while self.lines and self.lines[-1]["step"] >= line["step"]:
            self.lines.pop()
        self.lines.append(line)


def as_table(line: MetricsLine) -> list[dict[str, str]]:
    """A line of metrics as rows of a table for people, the loss by noise level and by bucket last."""
    shares = {"MFU": line.get("mfu"), "time spent waiting for data": line.get("data_wait")}
    rows = {
        "step": f"{line['step']} of {line['steps']}",
        "loss": f"{line['loss']:.4f}",
        "norm of the gradient": f"{line['gradient_norm']:.3g}",
        "learning rate": f"{line['learning_rate']:.3g}",
        "samples since the last line": f"{line['samples']}",
        "tokens/s": f"{line['tokens_per_s']:,.0f}",
        "s a step": f"{line['step_s']:.3g}",
    }
    rows |= {name: "unknown" if share is None else f"{share:.1%}" for name, share in shares.items()}
    rows |= {f"loss, noise level {band}": f"{loss:.4f}" for band, loss in sorted(line["loss_by_band"].items())}
    rows |= {f"loss, bucket {bucket}": f"{loss:.4f}" for bucket, loss in sorted(line["loss_by_bucket"].items())}
    return [{"metric": name, "value": value} for name, value in rows.items()]
