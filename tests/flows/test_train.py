"""The training flows as Prefect runs them, with the real trainer at a size for two CPU cores."""

import contextlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from benchmarks.encode_server import small_data
from flows.train import train_stage1
from training.launch.listener import GRACE_S
from training.launch.local import KILL_S
from training.launch.preflight import PreflightError
from training.run import RecordConfig, TrainingRun

RECORD = RecordConfig(log_every=2, save_every=3, sample_count=2, sample_steps=2)
CHANGES = {"phases": [{"data": "videos", "steps": 6}], "warmup_steps": 2, "frames": 9, "video_batch": 4}
ENDLESS = {"phases": [{"data": "videos", "steps": 100000}]}
STAGES = ["vae-adaptation", "stage1", "stage2", "stage3"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("clips"))


def train(manifest: str, output: Path, **options):
    changes = CHANGES | options.pop("recipe_changes", {})
    options = {"recipe": "lite-stage1", "record": RECORD, "recipe_changes": changes} | options
    return train_stage1([manifest], "tiny", str(output), **options)


@pytest.fixture(scope="module")
def out(tmp_path_factory, manifest, prefect_api):
    """A run of two ranks and six steps."""
    out = tmp_path_factory.mktemp("trained")
    assert train(manifest, out, processes=2) == str(out / "checkpoint")
    return out


def artifacts(out: Path) -> dict[str, list]:
    """Those of the newest run into ``out``."""
    with get_client(sync_client=True) as client:
        runs = {run.id: run for run in client.read_flow_runs() if run.parameters.get("output") == str(out)}
        newest = max(runs.values(), key=lambda run: run.created)
        found: dict[str, list] = {}
        for artifact in client.read_artifacts():
            if artifact.flow_run_id == newest.id:
                found.setdefault(artifact.key, []).append(artifact)
    return found


def test_a_run_leaves_a_checkpoint_and_says_what_was_run(out):
    run = TrainingRun.model_validate_json((out / "training.json").read_text())
    assert run.recipe.steps == 6 and run.checkpoint == "tiny"
    assert (out / "run.json").is_file() and list((out / "checkpoint" / "transformer").iterdir())


def test_the_prefect_ui_gets_plan_progress_loss_numbers_and_samples(out):
    shown = artifacts(out)
    assert shown["training-progress"][0].data == 100
    assert shown["training-loss"][0].data.startswith("![loss](data:image/svg+xml;base64,")
    numbers = {row["metric"]: row["value"] for row in json.loads(shown["training-metrics"][0].data)}
    assert numbers["step"] == "6 of 6" and float(numbers["loss"]) > 0
    (samples,) = shown["training-samples"]
    assert samples.description == "Sample videos after step 6"
    assert samples.data.startswith("| | | |\n|---|---|---|\n| ![](")
    assert samples.data.count("data:image/jpeg;base64,") == 2
    assert f"{out.as_uri()}/samples/step-00000006/00.mp4" in samples.data
    assert shown["training-plan"][0].data


def test_the_graph_has_a_node_for_each_part_of_the_work(out):
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.parameters.get("output") == str(out)]
        nodes = {run.name: run for run in client.read_task_runs() if run.flow_run_id == runs[0].id}
    by_id = {node.id: name for name, node in nodes.items()}
    after = {name: {by_id[each.id] for each in node.task_inputs.get("wait_for", [])} for name, node in nodes.items()}
    assert after == {"preflight": set(), "train": {"preflight"}, "samples": {"train"}, "export": {"train"}}
    assert all(node.state_type == "COMPLETED" for node in nodes.values())
    shown = artifacts(out)
    assert str(out / "checkpoint") in shown["training-result"][0].data
    assert shown["training-samples"][0].task_run_id == nodes["samples"].id
    assert shown["training-progress"][0].task_run_id == nodes["train"].id


def test_a_rank_that_fails_is_the_first_thing_in_the_run_s_state(tmp_path, manifest, prefect_api):
    state = train(manifest, tmp_path, recipe_changes={"learning_rate": 1e30}, restarts=2, return_state=True)
    assert state.is_failed()
    assert "RankFailed: rank 0: TrainingDiverged: the gradient of step" in state.message
    assert len(list((tmp_path / "logs").iterdir())) == 1  # it would diverge again


def test_what_cannot_go_well_is_said_before_any_rank_starts(tmp_path, prefect_api):
    with pytest.raises(PreflightError):
        train(str(tmp_path / "nothing"), tmp_path / "out")
    assert not (tmp_path / "out" / "logs").exists()


def test_a_run_whose_ranks_were_stopped_by_another_is_not_complete(tmp_path, manifest, prefect_api):
    def stop_rank() -> None:
        metrics = tmp_path / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            time.sleep(0.1)
        (pid,) = running(f"-u -m training.launch.attached training.main {tmp_path}")
        os.kill(pid, signal.SIGTERM)

    Thread(target=stop_rank, daemon=True).start()
    state = train(manifest, tmp_path, recipe_changes=ENDLESS, return_state=True)
    assert state.is_failed()
    assert re.search(r"TrainingStopped: stopped at step \d+ of 100000; start the run again", state.message)


PROGRAM = """
import sys
from pathlib import Path
from tests.flows.test_train import ENDLESS, train
train(sys.argv[1], Path(sys.argv[2]), processes=2, recipe_changes=ENDLESS)
"""


def test_sigterm_has_the_ranks_save_before_the_flow_ends(tmp_path, manifest, prefect_api):
    environment = os.environ | {"PREFECT_API_URL": prefect_api, "PREFECT_LOGGING_LEVEL": "INFO", "PYTHONPATH": "."}
    command = [sys.executable, "-c", PROGRAM, manifest, str(tmp_path)]
    lines, asked = [], False
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as flow:
        for line in flow.stderr:
            lines.append(line)
            if "step 4 of 100000" in line and not asked:  # a line that a signal breaks off is written again
                flow.send_signal(signal.SIGTERM)
                asked = True
    stopped = [line for line in lines if "[rank 0] stopped at step" in line]
    assert len(stopped) == 1, "".join(lines)
    step = int(stopped[0].split("stopped at step ")[1].split()[0])
    assert (tmp_path / "checkpoints" / f"step-{step:08d}").is_dir()
    assert not running(f"{tmp_path}/training.json")


def test_of_a_flow_that_was_killed_no_process_is_left_after_the_grace(tmp_path, manifest, prefect_api):
    environment = os.environ | {"PREFECT_API_URL": prefect_api, "PREFECT_LOGGING_LEVEL": "INFO", "PYTHONPATH": "."}
    command = [sys.executable, "-c", PROGRAM, manifest, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as flow:
        assert any("step 4 of 100000" in line for line in flow.stderr)
        flow.kill()
    deadline = time.monotonic() + GRACE_S + KILL_S
    while running(f"{tmp_path}/training.json") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not running(f"{tmp_path}/training.json")
    assert list((tmp_path / "checkpoints").glob("step-*"))  # and who could has saved


def running(words: str) -> list[int]:
    """Processes that have ``words`` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words in path.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_is_a_deployment_whose_form_explains_every_setting(name):
    deployments = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    entry = next(deployment for deployment in deployments if deployment["name"] == f"train-{name}")
    flow = load_flow_from_entrypoint(entry["entrypoint"])
    assert flow.name == f"train-{name}" and entry["enforce_parameter_schema"]
    assert entry["parameters"] == {"recipe": name}
    form = parameter_schema(flow)
    assert form.properties["recipe"]["default"] == name
    assert set(form.properties) == set(inspect.signature(flow.fn).parameters)
    assert set(form.required) == {"manifests", "checkpoint", "output"}
    assert all(field.get("description") for field in form.properties.values())
    for config in ("MachineConfig", "EncodeConfig", "RecordConfig"):
        assert all(field["description"] for field in form.definitions[config]["properties"].values())
