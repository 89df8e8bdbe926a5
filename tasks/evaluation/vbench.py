"""VBench's sixteen dimensions to its three totals: quality, semantic and overall (report, section 8.2; NUMERICS 7, 7b).

Each dimension's score is brought to its own scale, (score - lowest) / (highest - lowest), with the published limits and
without clipping; dynamic degree counts half. Quality is the weighted mean of seven, semantic the mean of nine, and the
total (4 * quality + semantic) / 5.

The published script takes a missing dimension as 0, and its package averages over the videos that it finds. Here a set
that is not complete is refused, and so is one that was measured in different environments.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

VIDEOS_PER_PROMPT = 5
QUALITY_SHARE, SEMANTIC_SHARE = 4, 1


@dataclass(frozen=True)
class Dimension:
    """What is measured, how it is brought to scale, and on how many prompts of VBench's list.

    Attributes:
        repeats: how many of the prompts occur twice in the list; both share their videos.
        skips: whether the package leaves out videos in which it does not find the object.
    """

    lowest: float
    highest: float
    prompts: int
    quality: bool = False
    weight: float = 1.0
    repeats: int = 0
    skips: bool = False


DIMENSIONS = {
    "subject_consistency": Dimension(0.1462, 1.0, 72, quality=True),
    "background_consistency": Dimension(0.2615, 1.0, 86, quality=True),
    "temporal_flickering": Dimension(0.6293, 1.0, 75, quality=True),
    "motion_smoothness": Dimension(0.706, 0.9975, 72, quality=True),
    "dynamic_degree": Dimension(0.0, 1.0, 72, quality=True, weight=0.5),
    "aesthetic_quality": Dimension(0.0, 1.0, 93, quality=True, repeats=1),
    "imaging_quality": Dimension(0.0, 1.0, 93, quality=True, repeats=1),
    "object_class": Dimension(0.0, 1.0, 79),
    "multiple_objects": Dimension(0.0, 1.0, 82),
    "human_action": Dimension(0.0, 1.0, 100),
    "color": Dimension(0.0, 1.0, 85, skips=True),
    "spatial_relationship": Dimension(0.0, 1.0, 84),
    "scene": Dimension(0.0, 0.8222, 86),
    "appearance_style": Dimension(0.0009, 0.2855, 90, repeats=1),
    "temporal_style": Dimension(0.0, 0.364, 100),
    "overall_consistency": Dimension(0.0, 0.364, 93, repeats=1),
}
QUALITY = tuple(name for name, dimension in DIMENSIONS.items() if dimension.quality)
SEMANTIC = tuple(name for name, dimension in DIMENSIONS.items() if not dimension.quality)


class RefusedSet(ValueError):
    """A set of scores has no totals: it is not complete, out of range, or of several environments; says which."""


@dataclass(frozen=True)
class Score:
    """One dimension's score, 0 to 1.

    Attributes:
        videos: on how many videos it was measured; None where that is not known.
        environment: a hash of the versions that measured it; None where that is not known.
    """

    value: float
    videos: int | None = None
    environment: str | None = None


class Totals(NamedTuple):
    """VBench's totals, as shares: the report's tables show them times 100."""

    quality: float
    semantic: float
    total: float


def totals(scores: Mapping[str, float | Score]) -> Totals:
    """Quality, semantic and total of one model's scores.

    Args:
        scores: the sixteen dimensions by their names in the package's result files, such as "subject_consistency".

    Raises:
        RefusedSet: dimensions are missing or unknown, values are not in 0..1, videos are missing, or environments
            differ. All faults are named at once.
    """
    found = {name: score if isinstance(score, Score) else Score(score) for name, score in scores.items()}
    faults = [*_incomplete(found), *_out_of_range(found), *_mixed(found)]
    if faults:
        raise RefusedSet("these VBench scores have no totals: " + "; ".join(faults))
    weighted = weighted_scores({name: score.value for name, score in found.items()})
    quality = sum(weighted[name] for name in QUALITY) / sum(DIMENSIONS[name].weight for name in QUALITY)
    semantic = sum(weighted[name] for name in SEMANTIC) / sum(DIMENSIONS[name].weight for name in SEMANTIC)
    return Totals(quality, semantic, total(quality, semantic))


def total(quality: float, semantic: float) -> float:
    """The overall score of a quality and a semantic score, in their unit."""
    return (QUALITY_SHARE * quality + SEMANTIC_SHARE * semantic) / (QUALITY_SHARE + SEMANTIC_SHARE)


def weighted_scores(values: Mapping[str, float]) -> dict[str, float]:
    """Each dimension's score on its own scale, times its weight. They may be above 1: the limits do not clip."""
    weighted = {}
    for name, value in values.items():
        limits = DIMENSIONS[name]
        weighted[name] = (value - limits.lowest) / (limits.highest - limits.lowest) * limits.weight
    return weighted


def read_results(files: Iterable[str | Path], environment: str | None = None) -> dict[str, Score]:
    """The scores in result files of the package, ``*_eval_results.json``: several, if dimensions ran apart.

    Args:
        environment: a hash of the versions that these files were made with.

    Raises:
        RefusedSet: a file is not of this format, or two files have one dimension.
    """
    scores: dict[str, Score] = {}
    for file in map(Path, files):
        try:
            content: Any = json.loads(file.read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise RefusedSet(f"{file.name} is cut off or no JSON ({error})") from None
        if not isinstance(content, dict):
            raise RefusedSet(f"{file.name} has no dimensions: results are in the files *_eval_results.json")
        for name, result in content.items():
            if not (isinstance(result, list) and len(result) == 2 and isinstance(result[1], list)):
                raise RefusedSet(f"{file.name}: {name} is not [score, [one a video]]")
            if name in scores:
                raise RefusedSet(f"{file.name} has {name}, which another file has too: which one counts?")
            scores[name] = Score(float(result[0]), len(result[1]), environment)
    return scores


def _incomplete(scores: Mapping[str, Score]) -> list[str]:
    faults = []
    if missing := [name for name in DIMENSIONS if name not in scores]:
        faults.append(f"missing {', '.join(missing)}")
    if unknown := [name for name in scores if name not in DIMENSIONS]:
        faults.append(f"unknown {', '.join(unknown)}")
    for name, score in scores.items():
        dimension = DIMENSIONS.get(name)
        if dimension is None or score.videos is None:
            continue
        most = dimension.prompts * VIDEOS_PER_PROMPT
        least = 1 if dimension.skips else (dimension.prompts - dimension.repeats) * VIDEOS_PER_PROMPT
        if not least <= score.videos <= most:
            faults.append(f"{name} was measured on {score.videos} videos, not {most}")
    return faults


def _out_of_range(scores: Mapping[str, Score]) -> list[str]:
    return [
        f"{name} is {score.value:g}, and scores lie in 0 to 1" + (": is it in percent?" if score.value > 1 else "")
        for name, score in scores.items()
        if not 0 <= score.value <= 1
    ]


def _mixed(scores: Mapping[str, Score]) -> list[str]:
    groups: dict[str | None, list[str]] = {}
    for name, score in scores.items():
        groups.setdefault(score.environment, []).append(name)
    if len(groups) < 2:
        return []
    parts = [f"{environment or 'unknown'} ({', '.join(names)})" for environment, names in groups.items()]
    return [f"measured in {len(groups)} environments: {', '.join(parts)}"]
