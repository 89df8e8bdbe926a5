"""Bad clips: a list of the clips that could not be read, and a run's patience with them.

OUT/bad_clips has a file of JSON lines for each rank that brings batches: step, place in the batch, clip, source, why,
and the clip that was trained on instead. A run that resumes removes the lines of the steps that it takes again.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from media.whole_file import writing
from training.data.plan import Sample
from training.encode.reading import BadClip

FOLDER = "bad_clips"
LEAST = 8  # bad clips that any run may have: a rate of fewer says nothing


class TooManyBadClips(ValueError):
    """More clips cannot be read than a run may have; says how many, and where they are listed."""


class BadClips:
    """The list of one rank, and the count of all.

    Args:
        data_rank: of the rank that brings batches; None on the others, which list nothing.
        most: share of the samples that may be bad.
    """

    def __init__(self, folder: Path, data_rank: int | None, most: float) -> None:
        self._folder, self._data_rank, self._most = folder / FOLDER, data_rank, most
        self._bad = self._samples = 0

    def add(self, step: int, sample: Sample, bad: Sequence[BadClip]) -> None:
        """List the clips that could not be read for a sample, which was trained on in their place."""
        if self._data_rank is None or not bad:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rank-{self._data_rank:05d}.jsonl").open("a") as file:
            for each in bad:
                line = {"step": step, "index": sample.index, "clip_id": each.clip_id, "source_uri": each.source_uri}
                file.write(json.dumps({**line, "words": each.words, "instead": sample.clip.clip_id}) + "\n")

    def check(self, samples: int, bad: int) -> None:
        """Count an interval's samples and bad clips, over all ranks; every rank counts the same.

        TooManyBadClips: since the run was started they are more than ``LEAST`` and than the share that it may have.
        """
        self._samples, self._bad = self._samples + samples, self._bad + bad
        if self._bad > max(LEAST, self._most * self._samples):
            raise TooManyBadClips(
                f"{self._bad} clips could not be read for {self._samples} samples, and encode.most_bad_clips is "
                f"{self._most:g}; {self._folder} lists them with the reasons"
            )


def forget_bad_clips(folder: Path, finished_steps: int) -> None:
    """Remove the lines of steps that a resumed run will take again, by one rank before any writes."""
    for path in sorted((folder / FOLDER).glob("rank-*.jsonl")):
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] < finished_steps]
        with writing(str(path)) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())


def read_bad_clips(folder: Path) -> list[dict[str, int | str]]:
    """The lines of all ranks, in the order of training."""
    lines = [json.loads(line) for path in (folder / FOLDER).glob("rank-*.jsonl") for line in _whole_lines(path)]
    return sorted(lines, key=lambda line: (line["step"], line["index"]))


def _whole_lines(path: Path) -> list[str]:
    """The lines that were written to their end: the last may not be, if its writer was killed."""
    return path.read_text().split("\n")[:-1]
