"""Scores: one declaration each, from which schema, verdict, report, preflight and the form of the UI are made.

A score is something that is measured on clips: its columns, what it needs to have been measured before, its config, the
limits on it with their reasons, and its *scorers*, by name: the implementations that profiles choose from. A filter of
the user's own is such a declaration, too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from typing import Any, Literal, Protocol

import pyarrow as pa

from tasks.tables.clip import Clip
from tasks.tables.limit import Limit
from tasks.tables.step import Row, StepConfig

CROP = ("crop_x", "crop_y", "crop_w", "crop_h")


@dataclass(frozen=True)
class Column:
    """A column that a score writes. ``log``: its values spread over decades. ``drawn``: the report draws it. ``label``:
    its short name there."""

    name: str
    meaning: str
    type: pa.DataType = field(default_factory=pa.float32)
    log: bool = False
    drawn: bool = False
    label: str = ""

    @property
    def field(self) -> pa.Field:
        """The column as Parquet stores it; what the report must know of it is in its metadata."""
        notes = {"meaning": self.meaning, "label": self.label or self.name}
        flags = {name: "yes" for name in ("log", "drawn") if getattr(self, name)}
        return pa.field(self.name, self.type, metadata=notes | flags)


@dataclass(frozen=True)
class Threshold:
    """A limit that a score asks for: its ``setting`` in the verdict's config, and the default there (None: off)."""

    reason: str
    column: str
    setting: str
    bound: Literal["low", "high"]
    default: float | None
    description: str
    words: str
    largest: float | None = None  # that the setting may be
    boxes: tuple[str, ...] = ()
    legend: str = ""

    def at(self, value: float | None) -> Limit:
        low, high = (value, None) if self.bound == "low" else (None, value)
        return Limit(self.reason, self.column, low, high, self.words, self.boxes, self.legend)


class Scorer(Protocol):
    """What measures. Making one is cheap, also without an accelerator: the first ``score`` loads its network, onto
    torch's current device, and ``weights`` is the hash of its network's weights, which is part of the result's key.
    Each device of a process has a scorer of its own.

    ``prepare`` runs in threads, ahead of the device; ``score`` gets at most ``batch`` samples, of clips of any sources,
    and returns a row for each. Of a score that is measured per source, ``prepare`` gets all clips of a source, and
    ``score`` returns a list of rows for each.
    """

    @property
    def weights(self) -> str | None: ...
    @property
    def batch(self) -> int: ...
    @property
    def device(self) -> Literal["cpu", "accelerator"]: ...
    def prepare(self, seen: Any, /) -> Any: ...
    def score(self, samples: Sequence[Any], /) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Plain:
    """A scorer that is a function of a clip (or of the clips of a source), without weights, on the CPU."""

    function: Callable[[Any], Any]
    weights: str | None = None
    batch: int = 1
    device: Literal["cpu", "accelerator"] = "cpu"

    def prepare(self, seen: Any) -> Any:
        return self.function(seen)

    def score(self, samples: Sequence[Any]) -> Sequence[Any]:
        return samples


MakeScorer = Callable[[Any], Scorer]


def plain(function: Callable[[Clip, Any], Row]) -> MakeScorer:
    """The scorer of ``function(clip, config) -> row``."""
    return lambda config: Plain(lambda clip: function(clip, config))


def plain_per_source(function: Callable[[Sequence[Clip], Any], list[Row]]) -> MakeScorer:
    """The scorer of ``function(clips of a source, config) -> their rows``."""
    return lambda config: Plain(lambda clips: function(clips, config))


@dataclass(frozen=True)
class Score:
    """The declaration of a score. Raise ``version`` when a scorer measures another value of the same pictures.

    ``needs`` names the scores that must be there before, because they move the crop that this one looks at.
    ``moves_crop``: its rows may have ``crop_x`` and so on. ``config.scorer``, where there is such a field, chooses
    among ``scorers``; else there is one. ``checkpoints`` names the weights that a scorer needs, as the registry of
    weights (models/scoring/weights.py) calls them.
    """

    name: str
    columns: tuple[Column, ...]
    scorers: Mapping[str, MakeScorer]
    config: type[StepConfig] = StepConfig
    needs: tuple[str, ...] = ()
    limits: tuple[Threshold, ...] = ()
    moves_crop: bool = False
    per_source: bool = False
    version: int = 1
    checkpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def scorer(self, config: StepConfig) -> Scorer:
        """The scorer that ``config`` chooses. KeyError: there is none of that name."""
        return self.scorers[self.scorer_name(config)](config)

    def scorer_name(self, config: StepConfig) -> str:
        return str(getattr(config, "scorer", next(iter(self.scorers))))

    @property
    def fields(self) -> list[pa.Field]:
        """The columns of the score's table, besides ``clip_id``."""
        crop = [pa.field(name, pa.int32()) for name in CROP] if self.moves_crop else []
        return [*(column.field for column in self.columns), *crop, pa.field("error", pa.string())]

    def checked(self, values: Row) -> Row:
        """What a scorer returned for a clip, as the score's table holds it. ValueError (or pyarrow's, which is one, or
        TypeError): a column that was not declared, a value of another type, or a number that no limit can judge."""
        fields = {field.name: field.type for field in self.fields if field.name != "error"}
        if strangers := sorted(set(values) - set(fields)):
            raise ValueError(f"the scorer returned {', '.join(strangers)}, which the score does not declare")
        found: Row = {name: pa.scalar(value, fields[name]).as_py() for name, value in values.items()}
        for name, value in found.items():
            if (odd := next((number for number in _numbers(value) if not isfinite(number)), None)) is not None:
                raise ValueError(f"{name} is {odd}, which is not a number that can be judged")
        return found


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a value, in lists and structs, too."""
    if isinstance(value, Real):
        yield float(value)
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
