"""Measure: the scores of every clip (report, section 3.1), built-in ones and the user's own filters alike.

What is measured, and in which order, is said by the declarations (scores.py); how, by the driver (tables/measure.py).
"""

from collections.abc import Sequence

from tasks.curation.filter import OwnFilter, declared
from tasks.curation.scores import SCORES
from tasks.tables.keys import step_of
from tasks.tables.measure import Chosen, in_order
from tasks.tables.measure import measure as measure_scores
from tasks.tables.step import StepConfig, step_task

CLIPS = ("scan", "cut", "dedup-clips")  # the tables that say which clips there are and where their pictures lie


def chosen(config: StepConfig, own: Sequence[OwnFilter]) -> list[Chosen]:
    """All scores with the configs that ``config`` has under their names, and those of the user's own filters."""
    built_in = [Chosen(score, getattr(config, score.name)) for score in SCORES]
    return built_in + [Chosen(score, score.config()) for score in declared(own)]


def pieces(config: StepConfig, own: Sequence[OwnFilter]) -> list[list[str]]:
    """The names of the scores that are measured together, in order."""
    return [[each.name for each in piece] for piece in in_order(chosen(config, own))]


def on_accelerator(names: Sequence[str], config: StepConfig, own: Sequence[OwnFilter]) -> bool:
    """Whether one of the scores ``names`` is measured on an accelerator."""
    return any(each.scorer().device == "accelerator" for each in chosen(config, own) if each.name in names)


@step_task("measure")
def measure(tables: list[str], names: list[str], config: StepConfig, own: list[OwnFilter]) -> list[str]:
    """Measure the scores ``names`` on every live clip of a shard; returns ``tables`` and one more for each score."""
    scores = [each for each in chosen(config, own) if each.name in names]
    by_step = {step_of(table): table for table in tables}
    clips = [by_step.pop(step) for step in CLIPS]
    named = {each.name: by_step[step] for each in chosen(config, own) if (step := each.step) in by_step}
    found = measure_scores(scores, clips, named)
    return [*tables, *(found[each.name] for each in scores)]
