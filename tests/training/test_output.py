"""What stands in an output counts as a run's only if it says so; and one run at a time writes there."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from media.lock import LOCK, InUse, locked
from models.checkpoint import CheckpointError, save_transformer
from models.transformer import ContentVTransformer
from models.video_file import GenerationMetadata, read_generation_metadata, write_video
from tests.training.small_data import small_recipe, small_run, write_data
from training.checkpoint.export import export_checkpoint
from training.checkpoint.facts import read_facts, run_digest
from training.checkpoint.files import Reader, read
from training.checkpoint.names import step_folders
from training.launch.local import write_run
from training.launch.preflight import PreflightError, preflight
from training.main import train_run
from training.observe.lineage import main as ask_lineage
from training.observe.lineage import read_branch, read_lineage
from training.observe.metrics import read_metrics
from training.recipe import Recipe
from training.run import RecordConfig, TrainingRun

STEPS = 4
HOLD = """
import sys, time
from media.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
SIZE = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}


def short_recipe(**changes: Any) -> Recipe:
    return small_recipe(**{"phases": [{"data": "videos", "steps": STEPS}], "warmup_steps": 1} | changes)


def short_run(manifest: str, output: Path, **changes: Any) -> TrainingRun:
    record = RecordConfig(log_every=1, save_every=2, sample_steps=1, sample_count=1)
    return small_run(manifest, output, **{"recipe": short_recipe(), "record": record} | changes)


def train(run: TrainingRun) -> int:
    return train_run(run, lambda: False)


def refused(run: TrainingRun, words: str) -> None:
    """By the preflight and by the run itself, which leaves all as it was."""
    before = contents(run.folder)
    with pytest.raises(PreflightError, match=words):
        preflight(run, 1)
    with pytest.raises(CheckpointError, match=words):
        train(run)
    assert contents(run.folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take the processor from whatever runs beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(data: str, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    run = short_run(data, tmp_path_factory.mktemp("done"))
    assert train(run) == STEPS
    return run


@pytest.fixture
def finished(done: TrainingRun, tmp_path: Path) -> TrainingRun:
    """A finished run, in an output of its own."""
    run = done.model_copy(update={"output": str(tmp_path / "out")})
    shutil.copytree(done.folder, run.folder)
    return run


def test_result_record_and_samples_say_whose_they_are(done: TrainingRun) -> None:
    facts = read_facts(done.folder / "checkpoint")
    assert facts["step"] == STEPS and facts["weights"] == "new tiny" and facts["seed"] == done.seed
    assert facts["recipe"] == done.recipe.model_dump(mode="json") and facts["encoder"] and facts["manifest"]
    record = json.loads((done.folder / "run.json").read_text())
    video = read_generation_metadata(str(done.folder / "samples" / f"step-{STEPS:08d}" / "00.mp4"))
    assert record["digest"] == video.config["run"] == run_digest(facts)


@pytest.mark.effect("RecordConfig.save_every")
@pytest.mark.effect("RecordConfig.keep_last")
@pytest.mark.effect("RecordConfig.keep_best")
def test_checkpoints_are_as_many_as_the_run_wants(data: str, tmp_path: Path) -> None:
    def left(**record: Any) -> list[int]:
        whole = RecordConfig(log_every=1, sample_steps=1, sample_count=1, **record)
        run = short_run(data, tmp_path / "-".join(map(str, record.values())), record=whole)
        train(run)
        return sorted(step for step, _ in step_folders(run.folder / "checkpoints"))

    assert left(save_every=1, keep_last=1, keep_best=0) == [4]
    assert left(save_every=3, keep_last=4, keep_best=0) == [3, 4]
    best = left(save_every=1, keep_last=2, keep_best=1)
    assert len(best) == 3 and best[1:] == [3, 4]


@pytest.mark.effect("TrainingRun.seed")
def test_another_seed_draws_other_samples_and_weights(done: TrainingRun, data: str, tmp_path: Path) -> None:
    run = short_run(data, tmp_path / "seed", seed=1)
    train(run)
    assert {row["seed"] for row in read_lineage(run.folder)}.isdisjoint(
        row["seed"] for row in read_lineage(done.folder)
    )
    name = Path("checkpoint", "transformer", "diffusion_pytorch_model.safetensors")
    ours, theirs = load_file(run.folder / name), load_file(done.folder / name)
    assert not torch.allclose(ours["proj_out.weight"], theirs["proj_out.weight"], atol=1e-3)


@pytest.mark.effect("Recipe.ema_decay")
def test_the_result_is_the_average_over_as_many_steps_as_the_recipe_says(
    done: TrainingRun, data: str, tmp_path: Path
) -> None:
    def distance(run: TrainingRun) -> float:
        """How far the result is from the weights of the last step."""
        result = load_file(run.folder / "checkpoint" / "transformer" / "diffusion_pytorch_model.safetensors")
        last = {"model": {name: torch.empty_like(tensor) for name, tensor in result.items()}}
        read(last, Reader(run.folder / "checkpoints" / f"step-{STEPS:08d}"), None)
        return max(float((tensor - last["model"][name]).abs().max()) for name, tensor in result.items())

    last_only = short_run(data, tmp_path / "last", recipe=short_recipe(ema_decay=0.0))
    train(last_only)
    assert distance(last_only) == 0 < distance(done)


def test_the_result_of_one_run_is_never_under_the_record_of_another(finished: TrainingRun) -> None:
    shutil.rmtree(finished.folder / "checkpoints")
    other = finished.model_copy(update={"seed": 1})
    refused(other, r"the export .*checkpoint is of another run:\n  seed is 0 there and 1 here(.|\n)*another output")


def test_a_finished_run_whose_checkpoints_were_removed_is_finished(finished: TrainingRun) -> None:
    shutil.rmtree(finished.folder / "checkpoints")
    before = contents(finished.folder)
    assert train(finished) == STEPS
    assert contents(finished.folder) == before
    (finished.folder / "run.json").unlink()  # as a crash before it leaves it
    assert train(finished) == STEPS
    assert json.loads((finished.folder / "run.json").read_text())["digest"] == json.loads(before["run.json"])["digest"]


def test_an_exported_step_is_not_the_result(finished: TrainingRun) -> None:
    shutil.rmtree(finished.folder / "checkpoint")
    export_checkpoint(finished.folder / "checkpoints" / "step-00000002", finished.folder / "checkpoint")
    refused(finished, "checkpoint is an export of step 2, and no result of a run of 4 steps; move it away")
    (finished.folder / "checkpoint" / "facts.json").unlink()
    refused(finished, "checkpoint is no checkpoint of a run")


def test_the_record_goes_first_and_comes_last(finished: TrainingRun) -> None:
    shutil.rmtree(finished.folder / "checkpoint")
    shutil.rmtree(finished.folder / "checkpoints")
    assert train_run(finished, lambda: True) < STEPS
    assert not (finished.folder / "run.json").exists()
    assert train(finished) == STEPS
    assert (finished.folder / "run.json").exists()


def test_samples_of_another_run_are_made_again(finished: TrainingRun) -> None:
    shutil.rmtree(finished.folder / "checkpoint")
    path = finished.folder / "samples" / f"step-{STEPS:08d}" / "00.mp4"
    write_video(torch.zeros(3, 9, 32, 32), str(path), GenerationMetadata("", 0, {"run": "another"}), 24)
    train(finished)
    assert read_generation_metadata(str(path)).config["run"] == run_digest(read_facts(finished.folder / "checkpoint"))


def test_samples_of_a_run_that_left_nothing_else_go(data: str, tmp_path: Path) -> None:
    run = short_run(data, tmp_path / "out")
    for name in ("step-00000001", "step-00000001-keep"):
        (run.folder / "samples" / name).mkdir(parents=True)
    train(run)
    assert sorted(path.name for path in (run.folder / "samples").glob("step-*")) == [
        "step-00000001-keep",
        "step-00000004",
    ]


@pytest.mark.effect("TrainingRun.checkpoint")
def test_other_starting_weights_are_refused_in_mid_run(data: str, tmp_path: Path) -> None:
    start = tmp_path / "start"
    torch.manual_seed(0)
    save_transformer(ContentVTransformer(**SIZE), start / "transformer")
    run = short_run(data, tmp_path / "out", checkpoint=str(start))
    assert train_run(run, lambda: True) < STEPS
    shutil.move(start, tmp_path / "elsewhere")  # the same weights in another place are the same start
    run = run.model_copy(update={"checkpoint": str(tmp_path / "elsewhere")})
    preflight(run, 1)
    save_transformer(ContentVTransformer(**SIZE), start / "transformer")
    refused(run.model_copy(update={"checkpoint": str(start)}), "weights is '.*' there and '.*' here")
    assert train(run) == STEPS


def test_another_encoder_is_refused_in_mid_run(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = short_run(data, tmp_path / "out")
    assert train_run(run, lambda: True) < STEPS
    last = max((run.folder / "checkpoints").iterdir())
    facts = json.loads((last / "facts.json").read_text())
    del facts["crc32"]
    (last / "facts.json").write_text(json.dumps(facts | {"encoder": "of another VAE"}))
    refused(run, "encoder is 'of another VAE' there")


@pytest.mark.effect("TrainingRun.branch_from")
def test_a_branch_goes_on_from_a_checkpoint_with_another_rate_and_more_steps(
    done: TrainingRun, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = done.folder / "checkpoints" / "step-00000002"
    phases = [{"data": "videos", "steps": 6}]
    recipe = short_recipe(learning_rate=1e-4, clip_norm=0.5, warmup_steps=3, phases=phases)
    in_place = done.model_copy(update={"recipe": recipe})
    with pytest.raises(PreflightError, match="may change in a branch: name the checkpoint as branch_from"):
        preflight(in_place, 1)
    run = short_run(data, tmp_path / "branch", recipe=recipe, branch_from=str(parent))
    preflight(run, 1)
    assert train_run(run, lambda: True) < 6
    assert train(run) == 6  # and it resumes from its own
    lines = read_metrics(run.folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 4, 5, 6]
    assert lines[0]["learning_rate"] == pytest.approx(1e-4)
    branch = read_branch(run.folder)
    assert branch and branch["checkpoint"] == str(parent) and branch["step"] == 2
    assert branch["run"] == run_digest(read_facts(parent))
    assert set(branch["changed"]) == {"learning_rate", "clip_norm", "warmup_steps", "phases"}
    assert json.loads((run.folder / "run.json").read_text())["branch"] == branch
    assert min(row["step"] for row in read_lineage(run.folder)) == 2
    assert ask_lineage([str(run.folder), "--step", "0"]) == 1
    assert f"steps before 2 are those of {parent}" in capsys.readouterr().err


def test_a_branch_begins_with_the_whole_state_of_its_checkpoint(done: TrainingRun, data: str, tmp_path: Path) -> None:
    run = short_run(data, tmp_path / "same", branch_from=str(done.folder / "checkpoints" / "step-00000002"))
    train(run)
    name = Path("checkpoint", "transformer", "diffusion_pytorch_model.safetensors")
    ours, theirs = load_file(run.folder / name), load_file(done.folder / name)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_a_branch_from_other_data_or_of_no_more_steps_is_refused(done: TrainingRun, data: str, tmp_path: Path) -> None:
    last = str(done.folder / "checkpoints" / f"step-{STEPS:08d}")
    refused_start(short_run(data, tmp_path / "none", branch_from=last), "has 4 steps, and the recipe no more")
    seed = short_run(data, tmp_path / "seed", branch_from=last, seed=1)
    refused_start(seed, "a branch may change learning_rate(.|\n)*seed is 0 there and 1 here")
    refused_start(short_run(data, tmp_path / "gone", branch_from="/nowhere"), "/nowhere is no checkpoint of a run")


def refused_start(run: TrainingRun, words: str) -> None:
    with pytest.raises(PreflightError, match=words):
        preflight(run, 1)
    with pytest.raises(CheckpointError, match=words):
        train(run)


def test_a_second_run_in_one_output_is_refused_and_touches_nothing(data: str, tmp_path: Path) -> None:
    run = short_run(data, tmp_path / "out")
    with locked(str(run.folder)):
        before = contents(run.folder)
        with pytest.raises(InUse, match="in use: process"):
            train(run)
        with pytest.raises(InUse, match="in use: process"):
            write_run(run)
        with pytest.raises(PreflightError, match="in use: process"):
            preflight(run, 1)
        assert contents(run.folder) == before
    assert train(run) == STEPS
    assert not (run.folder / LOCK).exists()


def test_a_run_that_was_killed_leaves_its_output_free(data: str, tmp_path: Path) -> None:
    run = short_run(data, tmp_path / "out")
    run.folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"process {process.pid}"):
            write_run(run)
        process.send_signal(signal.SIGKILL)
    write_run(run)


def with_place(tmp_path: Path, field: str, place: str) -> TrainingRun:
    return TrainingRun.model_validate(small_run("manifest", tmp_path).model_dump() | {field: place})


@pytest.mark.parametrize("field", ["output", "checkpoint", "branch_from"])
def test_a_place_in_an_object_store_is_refused_by_name(tmp_path: Path, field: str) -> None:
    places = ("s3://bucket/run", "S3://bucket/run", "memory://run", "file://host/run", "filecache::s3://bucket/run")
    for place in places:
        with pytest.raises(ValueError, match=rf"{field}\n(.|\n)*{place}"):
            with_place(tmp_path, field, place)


@pytest.mark.effect("TrainingRun.output")
def test_a_home_folder_and_a_file_uri_are_the_places_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert with_place(tmp_path, "output", "~/run").folder == tmp_path / "home" / "run"
    assert with_place(tmp_path, "output", (tmp_path / "a b").as_uri()).folder == tmp_path / "a b"
    assert with_place(tmp_path, "output", "plain/run").folder == Path("plain/run")
    assert with_place(tmp_path, "branch_from", "~/run").branch_from == str(tmp_path / "home" / "run")
