"""Plans of the report's recipes: what fits its cluster, and what is refused with a change that helps."""

import pytest

from models.checkpoint import read_config
from models.recompute import Mode
from models.transformer import TransformerConfig
from training.data.buckets import ASPECTS, Bucket, Shape
from training.distributed.layout import Layout
from training.memory.plan import DURATIONS_S, GB, DoesNotFit, MemoryPlan, check, plan_memory, remedies
from training.memory.planner import PAPER_RECIPES, days, main, parts_of_step
from training.memory.step import MODES, Setup, Tokens, device_bytes
from training.recipe import load_recipe

CONFIG = read_config("8b")
CLUSTER = Layout(256, 8, 8)
MEMORY = int(64 * GB)


def planned(
    name: str, layout: Layout = CLUSTER, memory: float = MEMORY, recompute: Mode = "none", every: int = 1
) -> MemoryPlan:
    return plan_memory(load_recipe(name), Setup(CONFIG, layout, "bfloat16", recompute, "npu", every), memory)


@pytest.mark.parametrize(
    ("stage", "bucket", "published"),
    [("stage1", Bucket(3, "1x1"), 18.92), ("stage2", Bucket(6, "1x1"), 100.03), ("stage3", Bucket(6, "16x9"), 871.54)],
)
def test_operations_of_the_longest_buckets_are_the_published(stage: str, bucket: Bucket, published: float) -> None:
    """The published figures leave the patch projection out."""
    (found,) = (each for each in planned(stage).buckets if each.bucket == bucket)
    patch_projection = 2 * found.tokens * 64 * CONFIG.inner_dim
    assert (found.forward_flops - patch_projection) / 1e12 == pytest.approx(published, abs=0.005)
    assert found.model_flops == 3 * found.forward_flops == found.training_flops


def test_buckets_are_all_that_the_recipe_draws_from() -> None:
    assert [each.bucket for each in planned("vae-adaptation").buckets] == [Bucket(0, aspect) for aspect in ASPECTS]
    both = [Bucket(duration, aspect) for duration in (0, *DURATIONS_S) for aspect in ASPECTS]
    assert [each.bucket for each in planned("stage2").buckets] == both


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_the_reports_cluster_fits_its_recipes(name: str, mode: Mode) -> None:
    found = planned(name, recompute=mode)
    assert found.fits
    check(found)
    assert all(each.peak_bytes <= MEMORY for each in found.buckets)


def test_the_largest_micro_batch_is_the_largest() -> None:
    found = planned("stage3")
    for each in found.buckets:
        one_more = Tokens(each.micro_batch + 1, each.tokens, each.text_tokens)
        assert device_bytes(found.setup, one_more, MEMORY) > MEMORY


def test_recomputing_brings_larger_micro_batches() -> None:
    longest = Shape(125, 432, 768)
    none, attention, full = (planned("stage3", Layout(64, 8, 8), recompute=mode).micro_batch(longest) for mode in MODES)
    assert none < attention < full


def test_the_fewer_blocks_are_computed_again_the_more_memory_they_take() -> None:
    longest, layout = Shape(125, 432, 768), Layout(64, 8, 8)
    found = [planned("stage3", layout, recompute="full", every=every) for every in (1, 2, 4)]
    at_once = [each.micro_batch(longest) for each in found]
    assert at_once == sorted(set(at_once), reverse=True)
    repeated = [each.costliest[-1].training_flops - each.costliest[-1].model_flops for each in found]
    assert repeated == sorted(set(repeated), reverse=True)


def test_computing_every_block_again_is_named_where_some_do_not_do() -> None:
    found = planned("stage3", Layout(256, 8, 1), 64 * GB, "full", every=8)
    assert not found.fits
    with pytest.raises(DoesNotFit, match="recompute full every 8 blocks"):
        check(found)
    assert any(other.setup.recompute_every == 1 for other in remedies(found))


def test_all_buckets_of_a_duration_train_with_what_fits_the_largest() -> None:
    found = planned("stage2")
    for frames, at_once in found.at_once.items():
        assert at_once == min(each.micro_batch for each in found.buckets if each.shape.frames == frames)
    assert found.micro_batch(Shape(125, 288, 288)) == found.at_once[125]
    with pytest.raises(KeyError):
        found.micro_batch(Shape(33, 288, 288))


@pytest.mark.parametrize(
    ("layout", "memory_gb", "recompute", "said"),
    [
        (Layout(256, 1, 8), 64, "full", ["state", "shard groups of 4"]),
        (CLUSTER, 16, "none", ["16 GB", "shard groups of"]),
        (Layout(256, 8, 1), 64, "none", ["16x9 6 s", "recompute attention; or", "sequence groups of"]),
    ],
)
def test_a_launch_that_cannot_fit_is_refused_and_what_is_named_does_fit(
    layout: Layout, memory_gb: float, recompute: Mode, said: list[str]
) -> None:
    found = planned("stage3", layout, memory_gb * GB, recompute)
    with pytest.raises(DoesNotFit) as refused:
        check(found)
    for words in said:
        assert words in str(refused.value)
    helping = remedies(found)
    assert helping
    for other in helping:
        again = planned("stage3", other.setup.layout, memory_gb * GB, other.setup.recompute)
        check(again)
        assert other.setup != found.setup


def test_what_is_named_is_the_least_that_helps() -> None:
    found = planned("stage3", Layout(256, 1, 8), recompute="full")
    (least,) = remedies(found)
    assert not planned("stage3", Layout(256, least.setup.layout.shard // 2, 8), recompute="full").fits


def test_where_nothing_helps_it_says_so() -> None:
    with pytest.raises(DoesNotFit, match="No layout of 8 ranks fits"):
        check(planned("stage3", Layout(8, 8, 8), 16 * GB))


def test_memory_that_others_take_is_not_there() -> None:
    alone = planned("stage2")
    shared = plan_memory(load_recipe("stage2"), alone.setup, MEMORY, other_bytes=int(20 * GB))
    assert 0 < shared.micro_batch(Shape(125, 288, 288)) < alone.micro_batch(Shape(125, 288, 288))
    check(shared)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="256 videos does not divide among 512"):
        planned("stage3", Layout(512, 8, 1))


def test_a_small_model_fits_a_laptop() -> None:
    config = TransformerConfig(num_layers=2, num_attention_heads=2)
    found = plan_memory(load_recipe("stage1"), Setup(config, Layout()), 8 * GB)
    assert found.fits
    assert not found.gathered_bytes


def test_micro_batches_of_a_rank_do_not_cross_runs() -> None:
    assert parts_of_step(samples=64, run=8, at_once=23) == 8
    assert parts_of_step(samples=64, run=8, at_once=3) == 24
    assert parts_of_step(samples=2, run=8, at_once=8) == 1
    assert parts_of_step(samples=8, run=8, at_once=0) == 0


def test_the_recipes_take_less_than_the_reports_month() -> None:
    """A third at most: the month has the stages after these in it, encoding, restarts, and a utilisation unknown."""
    total = sum(days(planned(name), peak_tflops=320, mfu=0.45) for name in PAPER_RECIPES)
    assert 3 < total < 10


def test_days_count_what_is_really_done() -> None:
    """What is computed again takes time; and buckets take their share of it by their clips."""
    none, full = (planned("stage3", recompute=mode) for mode in ("none", "full"))
    assert 1.25 < days(full, 320, 0.45) / days(none, 320, 0.45) < 4 / 3
    short, long = ({Bucket(0, "1x1"): 9, Bucket(duration, "1x1"): 5} for duration in (3, 6))
    assert days(none, 320, 0.45, short) < days(none, 320, 0.45) < days(none, 320, 0.45, long)
    mixed = {Bucket(0, "1x1"): 1, Bucket(3, "1x1"): 3, Bucket(6, "1x1"): 1}
    assert days(none, 320, 0.45, mixed) == pytest.approx(
        0.75 * days(none, 320, 0.45, short) + 0.25 * days(none, 320, 0.45, long)
    )


def test_the_program_tells_by_its_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = ["--world", "256", "--shard", "8", "--sequence", "8"]
    assert main(["all", "--memory-gb", "64", *cluster, "--peak-tflops", "320", "--mfu", "0.45"]) == 0
    out = capsys.readouterr().out
    assert "8,056,627,520 parameters" in out
    assert all(f"{name}:" in out for name in PAPER_RECIPES)
    assert "125x432x768  41,472      5,226" in out
    assert "days in all" in out

    assert main(["stage3", "--memory-gb", "16", *cluster]) == 1
    told = capsys.readouterr()
    assert "NONE" in told.out
    assert "does not fit devices of 16 GB" in told.err

    assert main(["stage9", "--memory-gb", "64"]) == 2
    assert "stage9" in capsys.readouterr().err


def test_every_bucket_is_printed_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["stage2", "--memory-gb", "64", "--world", "256", "--shard", "8", "--sequence", "8", "--all"]
    assert main(arguments) == 0
    printed = {" ".join(line.split()[:2]) for line in capsys.readouterr().out.splitlines()}
    assert {f"{aspect} image" for aspect in ASPECTS} < printed
    assert {f"{aspect} {duration}" for aspect in ASPECTS for duration in DURATIONS_S} < printed
