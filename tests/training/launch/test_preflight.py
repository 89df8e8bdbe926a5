"""Before any work a run is told what it lacks."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import save_transformer
from models.transformer import ContentVTransformer
from tests.models.tiny_checkpoints import write_text_encoders, write_vae
from tests.training.small_data import row, small_recipe, small_run, write_data, write_manifest
from training.launch.preflight import PreflightError, preflight
from training.run import EncodeConfig, MachineConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


def test_a_run_that_can_be_is_planned(data: str, tmp_path: Path) -> None:
    plan = preflight(small_run(data, tmp_path / "out"), 1)
    assert "small: 12 steps from tiny on 1 ranks of cpu" in plan
    assert "16x9 1 s 3" in plan and "9x16 1 s 2" in plan
    assert f"on this machine: torch {torch.__version__}" in plan
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.effect("MachineConfig.memory_gb")
def test_a_cluster_is_planned_from_a_machine_without_its_devices(data: str, tmp_path: Path) -> None:
    cluster = {"device": "npu", "shard": 2, "sequence": 2}
    with pytest.raises(PreflightError, match=r"memory_gb"):
        preflight(small_run(data, tmp_path / "out", machine=MachineConfig.model_validate(cluster)), 4)
    plans = [
        preflight(
            small_run(data, tmp_path / "out", machine=MachineConfig.model_validate(cluster | {"memory_gb": gb})), 4
        )
        for gb in (8, 64)
    ]
    assert "devices of 8 GB" in plans[0] and "devices of 64 GB" in plans[1]
    assert all("12 steps from tiny on 4 ranks of npu, 2 of data" in plan and "torch_npu" in plan for plan in plans)


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({"checkpoint": "/nowhere"}, 1, "no transformer config at"),
        ({"checkpoint": "8b"}, 1, "does not fit devices"),
        ({"recipe": small_recipe(codec="wan")}, 1, "'tiny' is only a size"),
        ({"machine": MachineConfig(sequence=2)}, 3, "sequence groups of 2 ranks do not divide the 3 ranks"),
        ({}, 3, "does not divide evenly among 3"),
        ({"encode": EncodeConfig(servers=("grpc://127.0.0.1:9",))}, 1, "no encode server answers: grpc://127.0.0.1:9"),
        ({"machine": MachineConfig(memory_gb=0.05)}, 1, "does not fit devices of 0.05 GB"),
    ],
)
def test_what_cannot_be_is_refused(
    data: str, tmp_path: Path, changes: dict[str, Any], processes: int, words: str
) -> None:
    with pytest.raises(PreflightError, match=words):
        preflight(small_run(data, tmp_path / "out", **changes), processes)


def test_a_checkpoint_of_another_size_than_its_config_is_refused(data: str, tmp_path: Path) -> None:
    size = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    save_transformer(ContentVTransformer(**size), tmp_path / "start" / "transformer")
    config = tmp_path / "start" / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 1', '"num_layers": 2'))
    with pytest.raises(
        PreflightError, match=r"does not fit the model:\n.* missing: transformer_blocks.0.attn.to_add_out"
    ):
        preflight(small_run(data, tmp_path / "out", checkpoint=str(tmp_path / "start")), 1)


def test_text_of_another_width_than_the_model_takes_is_refused(data: str, tmp_path: Path) -> None:
    size = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 64}
    save_transformer(ContentVTransformer(**size), tmp_path / "start" / "transformer")
    with pytest.raises(PreflightError, match="hashed words are 4096 and 2048 wide"):
        preflight(small_run(data, tmp_path / "out", checkpoint=str(tmp_path / "start")), 1)


def test_encoders_that_are_missing_are_named(data: str, tmp_path: Path) -> None:
    size = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 64}
    folder = tmp_path / "start"
    save_transformer(ContentVTransformer(**size, pooled_projection_dim=40), folder / "transformer")
    run = small_run(data, tmp_path / "out", checkpoint=str(folder), recipe=small_recipe(codec="wan", text="sd3"))
    with pytest.raises(PreflightError, match=r"lacks .*text_encoder.*vae"):
        preflight(run, 1)
    write_vae(folder)
    write_text_encoders(folder)
    assert "small: 12 steps" in preflight(run, 1)


def test_sources_that_are_gone_are_named(tmp_path: Path) -> None:
    manifest = write_data(tmp_path / "data")
    (tmp_path / "data" / "0.mp4").unlink()
    with pytest.raises(PreflightError, match=r"1 of the 9 sources .* first .*/0.mp4"):
        preflight(small_run(manifest, tmp_path / "out"), 1)


def test_an_output_of_another_run_is_not_gone_on_with(data: str, tmp_path: Path) -> None:
    run = small_run(data, tmp_path / "out")
    whole = tmp_path / "out" / "checkpoints" / "step-00000003"
    whole.mkdir(parents=True)
    (whole / "facts.json").write_text(
        '{"step": 3, "loss": 1.0, "seed": 0, "manifest": "another", "recipe": {}, "model": {}}'
    )
    with pytest.raises(PreflightError, match=r"of another run(.|\n)*choose another output"):
        preflight(run, 1)
    shutil.rmtree(whole)
    preflight(run, 1)


def test_what_is_left_out_is_said_and_its_sources_are_not_asked_for(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    (tmp_path / "0.mp4").unlink()  # of 0.75 s
    with pytest.raises(PreflightError, match=r"1 of the 9 sources that were looked at are not there, first .*0.mp4"):
        preflight(small_run(data, tmp_path / "out"), 1)
    told = preflight(small_run(data, tmp_path / "out", recipe=small_recipe(least_duration_s=1.5)), 1)
    assert "clips: 4 (16x9 image 2, 16x9 2 s 2)" in told
    assert "left out, shorter than 1.5 s: 5 (16x9 1 s 3, 9x16 1 s 2)" in told


def test_a_row_that_would_fail_in_training_is_named(tmp_path: Path) -> None:
    wrong = [row(n, tmp_path / "a.mp4", (48, 80), "16x9", 1, 1.0) | {"crop_x": 2 * n} for n in range(2)]
    write_manifest(wrong, tmp_path / "manifest")
    with pytest.raises(PreflightError, match=r"part-00000.parquet, row 1, clip 'clip-1': its crop .* is not inside"):
        preflight(small_run(str(tmp_path / "manifest"), tmp_path / "out"), 1)


def test_a_node_without_devices_plans_for_those_of_the_cluster(data: str, tmp_path: Path) -> None:
    """What is computed again is in the plan, so a batch that fits only so is not refused."""
    machine = MachineConfig(device="npu", memory_gb=8, shard=2, recompute="full", recompute_every=2)
    plan = preflight(small_run(data, tmp_path / "out", machine=machine), 2)
    assert "on devices of 8 GB" in plan and "recompute full every 2 blocks" in plan
    with pytest.raises(PreflightError, match=r"no npu .* say how much .* machine\.memory_gb"):
        preflight(small_run(data, tmp_path / "out", machine=machine.model_copy(update={"memory_gb": None})), 2)


@pytest.mark.effect("TrainingRun.manifests")
def test_a_run_trains_on_the_clips_of_its_manifests(data: str, tmp_path: Path) -> None:
    shutil.copytree(Path(data) / "aspect=9x16", tmp_path / "tall" / "aspect=9x16")
    recipe = small_recipe(phases=[{"data": "videos", "steps": 6}])
    plans = [preflight(small_run(each, tmp_path / "out", recipe=recipe), 1) for each in (data, str(tmp_path / "tall"))]
    assert ["16x9 1 s" in plan for plan in plans] == [True, False]
    assert all("9x16 1 s" in plan for plan in plans)
