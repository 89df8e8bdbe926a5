"""Filters of the user's own: one file, a score per clip, its allowed range in the verdict's config.

A filter is a ``Filter`` in a module of the folder that the run starts in, or in any importable one, named in the flow's
parameters as ``module:name``::

    # my_filters.py
    from tasks.curation.filter import Filter
    from tasks.tables.clip import Clip

    def saturation(clip: Clip) -> float:
        frames = [frame.image for frame in clip.frames(4)]
        return float(np.mean([np.ptp(image, axis=2).mean() for image in frames]) / 255)

    colourful = Filter(column="saturation", meaning="mean channel range, 0 to 1", score=saturation)

    # in the run's parameters
    {"config": {"verdict": {"filters": [{"filter": "my_filters:colourful", "low": 0.1}]}}}

The column is in OUT/clips and in the manifest, and the report draws its histogram. Another limit scores nothing again.
A filter with more than one column, or with a network, is a whole ``tasks.tables.score.Score`` in the same place. Then
a limit says which of its columns it is on: ``{"filter": "my_filters:faces", "column": "faces_area", "high": 0.3}``.
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tasks.curation.scores import SCORES
from tasks.tables.clip import Clip
from tasks.tables.keys import folder_of
from tasks.tables.schema import RESERVED, STEPS
from tasks.tables.score import Column, Score, plain

PLACES = ("sources", "duplicates", "clips")  # other folders of OUT/steps
ALLOWED = "CONTENTV_FILTER_MODULES"  # in the environment: the only modules that filters may come from, with commas


@dataclass(frozen=True)
class Filter:
    """A score of the user's own. Raise ``version`` when ``score`` changes, so that old scores are not taken for new."""

    column: str
    meaning: str
    score: Callable[[Clip], float]
    version: int = 1

    def declared(self, name: str) -> Score:
        """The filter as a declaration like any other; ``name`` is how the run's parameters call it."""

        def row(clip: Clip, _: object) -> dict[str, float]:
            return {self.column: float(self.score(clip))}

        return Score(
            f"filter {self.column} of {name.replace(':', ' ')}",
            needs=("overlays",),
            columns=(Column(self.column, self.meaning, drawn=True),),
            scorers={"own": plain(row)},
            version=self.version,
        )


@dataclass(frozen=True)
class OwnFilter:
    """A filter as it travels to where tasks run: its name as ``module:name``, and the text of the module where that is
    a file of the user's working folder, which other machines do not have. None: a module that is installed."""

    name: str
    source: str | None

    @classmethod
    def of(cls, name: str) -> "OwnFilter":
        """The filter ``module:name`` of the working folder, or of an installed module. ValueError: it is no such name,
        or its file cannot be read."""
        module = name.partition(":")[0]
        if not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"filter {name!r} is not named as module:name")
        file = Path.cwd() / f"{module}.py"
        try:
            return cls(name, file.read_text("utf-8") if file.is_file() else None)
        except (OSError, UnicodeDecodeError) as problem:
            raise ValueError(f"filter {name!r} cannot be loaded: {problem}") from problem

    def declared(self) -> Score:
        """Its declaration; ValueError says what is wrong with it."""
        module, _, attribute = self.name.partition(":")
        allowed = os.environ.get(ALLOWED)
        if allowed is not None and module not in [each.strip() for each in allowed.split(",")]:
            raise ValueError(f"filter {self.name!r} is not allowed on this machine: {ALLOWED} is {allowed!r}")
        try:
            found = getattr(import_module(module) if self.source is None else _module(module, self.source), attribute)
        except (Exception, SystemExit) as problem:  # whatever the user's module does while it is imported
            raise ValueError(f"filter {self.name!r} cannot be loaded: {problem}") from problem
        if isinstance(found, Filter):
            return found.declared(self.name)
        if isinstance(found, Score):
            return found
        raise ValueError(f"filter {self.name!r} is a {type(found).__name__}, not a tasks.curation.filter.Filter")


def _module(name: str, source: str) -> ModuleType:
    """The module ``name`` made of its text, once in a process while the text stays the same.

    It is not put on Python's path: nothing else that lies in the working folder becomes importable by it, and it hides
    no installed module of its name. Dataclasses and configs look their module up, so it has a name of its own there.
    """
    known = _MODULES.get(name)
    if known is None or known[0] != source:
        module = ModuleType(f"own_filters.{name}")
        sys.modules[module.__name__] = module
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
        _MODULES[name] = known = source, module
    return known[1]


_MODULES: dict[str, tuple[str, ModuleType]] = {}


def declared(filters: Iterable[OwnFilter]) -> list[Score]:
    """The declarations of filters.

    ValueError: two write one column, or one that is taken; or one has the name of a step or another score, or no
    column, or limits of its own, which are set in the verdict.
    """
    scores = [own.declared() for own in dict.fromkeys(filters)]
    folders = {folder_of(name) for name in (*STEPS, *PLACES, *(score.name for score in SCORES))}
    for score in scores:
        if folder_of(score.name) in folders:
            raise ValueError(f"the name {score.name!r} of a filter is that of a step or another score")
        folders.add(folder_of(score.name))
        if not score.columns or score.limits:
            what = "has limits: give them in verdict.filters" if score.limits else "has no column"
            raise ValueError(f"the filter {score.name!r} {what}")
    taken = {name: "a column of the tables" for name in RESERVED}
    taken |= {column.name: f"measured by {score.name!r}" for score in SCORES for column in score.columns}
    for score in scores:
        for column in score.columns:
            if column.name in taken:
                taker = taken[column.name]
                raise ValueError(f"{score.name!r} would write the column {column.name!r}, which is {taker}")
            taken[column.name] = f"measured by {score.name!r}"
    return scores
