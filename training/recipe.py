"""Recipes: what one stage of training does, as typed YAML (report, section 5.3 and Table 2).

A recipe names only what the stage decides. What the machine decides (devices, sequence parallelism, recomputation) is
not in here, so one recipe runs on a laptop and on 256 accelerators and means the same: batch sizes are totals over all
of them.
"""

from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.codec import latent_shape
from models.text_to_video import CodecName, TextName

FOLDER = Path(__file__).parent / "recipes"

DATA_RANKS = 32  # of the report's cluster: 256 devices in sequence groups of 8

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a moving average; at 1 it would stay as it began
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what generators of numpy and torch both take
Kind = Literal["images", "videos"]
Data = Literal["images", "videos", "balanced"]


class RecipeError(ValueError):
    """A recipe that cannot be read or contradicts itself; the message names the file and the fields."""


class Phase(BaseModel):
    """A stretch of a stage that draws from the same data; "balanced" is as many steps on images as on videos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Data
    steps: Count


class Recipe(BaseModel):
    """One stage of training. Fields without a default are in the report's Table 2; the other defaults are ours.

    Attributes:
        frames, height, width: the largest shape, pixels; other aspect ratios have about as many pixels.
        image_batch, video_batch: samples a step over all devices.
        phases: in their order (section 5.3: videos alone first, then images and videos in balance).
        flow_shift: of the noise levels; 1 in training (section 5.1).
        bucket_run: samples in a row of a step's batch that come from one bucket, and can be batched; empty: as many as
            one of the report's 32 data ranks trains on in a step.
        least_short_side: pixels that the shorter side of a clip's crop must have to be trained on (Figure 2: stages
            filter by resolution and duration).
        least_duration_s: seconds that a video must have to be trained on.
        caption: which caption of the manifest is trained on (section 3.3: dense ones).
        caption_drop: share of samples trained without their caption, which guidance needs in sampling.
        warmup_steps: steps over which the learning rate rises from zero; it is constant after.
        clip_norm: largest norm of a step's gradient, over all parameters and all devices.
        ema_decay: of the averaged weights that are sampled from.
        codec, text: "lite" needs no weights; its models sample with the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    frames: Count
    height: Count
    width: Count
    image_batch: Count | None = None
    video_batch: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)]
    phases: tuple[Phase, ...] = Field(min_length=1)
    fps: Count = 24
    flow_shift: Annotated[float, Field(gt=0)] = 1.0
    bucket_run: Count | None = None
    least_short_side: Annotated[int, Field(ge=0)] = 0
    least_duration_s: Annotated[float, Field(ge=0)] = 0.0
    caption: Literal["caption_short", "caption_detailed"] = "caption_detailed"
    caption_drop: Share = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    ema_decay: Decay = 0.999
    codec: CodecName = "wan"
    text: TextName = "sd3"

    @cached_property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What the phases train on: images, videos, or both."""
        drawn = {phase.data for phase in self.phases}
        kinds: tuple[Kind, ...] = ("images", "videos")
        return tuple(kind for kind in kinds if drawn & {kind, "balanced"})

    def batch(self, kind: Kind) -> int:
        """Samples of a step over all devices. ValueError: the recipe trains on none of the kind."""
        size = self.image_batch if kind == "images" else self.video_batch
        if size is None:
            raise ValueError(f"recipe {self.name} has no batch of {kind}")
        return size

    def run(self, kind: Kind) -> int:
        """Samples in a row of a step's batch that come from one bucket."""
        size = self.batch(kind)
        return self.bucket_run or size // gcd(size, DATA_RANKS)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step number ``step``, from 0: a linear rise over ``warmup_steps``, then constant."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        latent_shape(self.frames, self.height, self.width)  # says what would fit
        for kind, batch, field in (
            ("images", self.image_batch, "image_batch"),
            ("videos", self.video_batch, "video_batch"),
        ):
            if kind in self.kinds and batch is None:
                raise ValueError(f"a phase trains on {kind}, and there is no {field}")
            if batch is not None and self.bucket_run and batch % self.bucket_run:
                raise ValueError(f"{field} {batch} is not made of whole runs of {self.bucket_run} from one bucket")
        if self.frames == 1 and self.kinds != ("images",):
            raise ValueError("with one frame there are only images to train on")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"the warm-up of {self.warmup_steps} steps leaves none of {self.steps}")
        return self


def recipe_names() -> list[str]:
    """The recipes that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, **changes: Any) -> Recipe:
    """A recipe of the project by its name ("stage2"), or one of your own by its path; ``changes`` replace fields.

    RecipeError: there is none, it is no YAML, or its fields are wrong.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name_or_path}.yaml"
        if not path.is_file():
            raise RecipeError(f"no recipe is named {str(name_or_path)!r}; there are {', '.join(recipe_names())}")
    try:
        fields = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise RecipeError(f"recipe {path} cannot be read: {problem}") from problem
    if not isinstance(fields, dict):
        raise RecipeError(f"recipe {path} is no list of fields and values")
    try:
        return Recipe.model_validate({"name": path.stem} | fields | changes)
    except ValidationError as problem:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'recipe'}: {one['msg']}" for one in problem.errors())
        raise RecipeError(f"recipe {path}: {wrong}") from problem
