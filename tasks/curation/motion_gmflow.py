"""Motion by the report's network: GMFlow's flow instead of DIS, pairs of all clips of a batch together by their size.

What is made of the flow is the same as for DIS (motion.py): background, foreground, and which of it can be trusted.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.scoring.device import current_device
from models.scoring.gmflow import FlowNetwork, load_gmflow
from models.scoring.weights import hash_of, located
from tasks.curation.motion import FLOW_SIDE, GMFLOW, MotionConfig, flow_of, row_of, speeds_of
from tasks.tables.clip import Clip
from tasks.tables.frame_store import FramePair
from tasks.tables.picture import Image, at_side
from tasks.tables.step import Row, cores

CLIPS_PER_BATCH = 4  # of up to 8 pairs each
PAIRS_PER_PASS = 16

Pictures = tuple[Image, Image]


@dataclass(frozen=True)
class Sample:
    """The pairs of a clip, and their pictures at the size that flow is computed in, RGB uint8 [h, w, 3]."""

    pairs: Sequence[FramePair]
    pictures: Sequence[Pictures]


class MotionScorer:
    """A ``Scorer`` whose network is loaded by the first batch, onto the device that is current then."""

    batch = CLIPS_PER_BATCH
    device: Literal["accelerator"] = "accelerator"

    def __init__(self, config: MotionConfig, network: FlowNetwork | None = None) -> None:
        """Use ``network`` for the flow; by default GMFlow with its published weights."""
        self._config, self._given = config, network

    @property
    def weights(self) -> str:
        """The hash of the checkpoint. FileNotFoundError with what brings it where it is missing."""
        return hash_of(GMFLOW)

    def prepare(self, clip: Clip) -> Sample:
        pairs = clip.pairs(self._config.pairs_max)
        side = self._config.working_side
        return Sample(pairs, [(working_colour(p.first, side), working_colour(p.second, side)) for p in pairs])

    def score(self, samples: Sequence[Sample]) -> list[Row]:
        """Speeds of every clip; null where it has no pairs."""
        flows = iter(self._flows([pictures for sample in samples for pictures in sample.pictures]))
        dense = [[next(flows) for _ in sample.pairs] for sample in samples]
        with ThreadPoolExecutor(cores()) as pool:
            return list(pool.map(self._row, samples, dense))

    def _row(self, sample: Sample, dense: Sequence[NDArray[np.float32]]) -> Row:
        flows = [flow_of(pair, self._config, each) for pair, each in zip(sample.pairs, dense, strict=True)]
        return row_of(speeds_of(flows, [pair.gap_s for pair in sample.pairs]) if flows else None)

    def _flows(self, pictures: Sequence[Pictures]) -> list[NDArray[np.float32]]:
        """The flow [h, w, 2] of every pair, in their order; those of one size pass the network together."""
        found: dict[int, NDArray[np.float32]] = {}
        by_size: dict[tuple[int, ...], list[int]] = {}
        for number, (first, _) in enumerate(pictures):
            by_size.setdefault(first.shape, []).append(number)
        for numbers in by_size.values():
            for start in range(0, len(numbers), PAIRS_PER_PASS):
                part = numbers[start : start + PAIRS_PER_PASS]
                firsts, seconds = (np.stack([pictures[number][end] for number in part]) for end in (0, 1))
                flow = self._network.flow(*(self._on_device(images) for images in (firsts, seconds)))
                found.update(zip(part, flow.permute(0, 2, 3, 1).float().cpu().numpy(), strict=True))
        return [found[number] for number in range(len(pictures))]

    def _on_device(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(images).to(current_device()).permute(0, 3, 1, 2)

    @cached_property
    def _network(self) -> FlowNetwork:
        return self._given or load_gmflow(located(GMFLOW), device=current_device())


def working_colour(image: Image, side: int) -> Image:
    """RGB [h, w, 3] of the size that ``working_picture`` gives a grey one."""
    small = at_side(image, side)
    missing = [(0, max(0, FLOW_SIDE - lines)) for lines in small.shape[:2]]
    return np.pad(small, [*missing, (0, 0)], mode="edge") if np.any(missing) else small
