"""The recipes are the report's Table 2, and wrong ones say what is wrong."""

import pytest

from training.data.buckets import Shape
from training.recipe import Phase, Recipe, RecipeError, load_recipe, recipe_names

TABLE_2 = {
    "vae-adaptation": ((1, 288, 288), 4096, None, 1e-4, 5_000),
    "stage1": ((29, 288, 288), 4096, 2048, 1e-4, 40_000),
    "stage2": ((125, 288, 288), 4096, 512, 1e-4, 60_000),
    "stage3": ((125, 432, 768), 2048, 256, 5e-5, 30_000),
}


@pytest.mark.parametrize("name", TABLE_2)
def test_recipe_is_a_row_of_table_2(name: str) -> None:
    recipe = load_recipe(name)
    shape = recipe.frames, recipe.height, recipe.width
    assert (shape, recipe.image_batch, recipe.video_batch, recipe.learning_rate, recipe.steps) == TABLE_2[name]
    assert recipe.flow_shift == 1


def test_longest_stage_has_the_tokens_of_the_report() -> None:
    recipe = load_recipe("stage3")
    assert Shape(recipe.frames, recipe.height, recipe.width).tokens == 41_472


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3"])
def test_videos_alone_come_first_then_images_and_videos_in_balance(name: str) -> None:
    recipe = load_recipe(name)
    assert [phase.data for phase in recipe.phases] == ["videos", "balanced"]


def test_learning_rate_rises_and_stays() -> None:
    recipe = load_recipe("stage1")
    assert recipe.learning_rate_at(0) == pytest.approx(recipe.learning_rate / 1000)
    assert recipe.learning_rate_at(499) == pytest.approx(recipe.learning_rate / 2)
    assert recipe.learning_rate_at(999) == recipe.learning_rate_at(39_999) == recipe.learning_rate


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": 124}, "125"),
        ({"height": 290}, "288"),
        ({"video_batch": None}, "no video_batch"),
        ({"frames": 1}, "only images"),
        ({"learning_rat": 1e-4}, "learning_rat"),
        ({"warmup_steps": 40_000}, "warm-up"),
        ({"betas": (0.9, 1.0)}, r"betas\.1: .*less than 1"),
        ({"betas": (1, 0.999)}, r"betas\.0: .*less than 1"),
        ({"learning_rate": float("inf")}, "learning_rate: .*finite"),
        ({"learning_rate": float("nan")}, "learning_rate: .*finite"),
        ({"flow_shift": float("inf")}, "flow_shift: .*finite"),
        ({"clip_norm": float("inf")}, "clip_norm: .*finite"),
        ({"weight_decay": float("inf")}, "weight_decay: .*finite"),
        ({"ema_decay": 1.0}, "ema_decay: .*less than 1"),
        ({"caption_drop": float("nan")}, "caption_drop: .*finite"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("stage1", **change)


def test_own_recipe_is_read_by_its_path(tmp_path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("{frames: 5, height: 64, width: 96, video_batch: 8, learning_rate: 1.0e-3, warmup_steps: 0, ")
    with pytest.raises(RecipeError, match=r"mine\.yaml cannot be read"):
        load_recipe(own)
    own.write_text(own.read_text() + "phases: [{data: videos, steps: 10}]}")
    recipe = load_recipe(own)
    assert recipe == Recipe(
        name="mine",
        frames=5,
        height=64,
        width=96,
        video_batch=8,
        learning_rate=1e-3,
        warmup_steps=0,
        phases=(Phase(data="videos", steps=10),),
    )
    with pytest.raises(RecipeError, match="stage1, stage2, stage3, vae-adaptation"):
        load_recipe("stage9")
    assert recipe_names() == sorted([*TABLE_2, *(f"lite-{name}" for name in TABLE_2)])


@pytest.mark.parametrize("name", ["vae-adaptation", "stage1", "stage2", "stage3"])
def test_the_lite_recipes_have_the_same_shape_of_content(name: str) -> None:
    paper, lite = load_recipe(name), load_recipe(f"lite-{name}")
    assert [phase.data for phase in lite.phases] == [phase.data for phase in paper.phases]
    assert (lite.frames == 1) == (paper.frames == 1)
    assert (lite.codec, lite.text) == ("lite", "lite")
