"""The generate flow as Prefect runs it: what it leaves, what it makes again, and how it fails."""

import inspect
import json
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.generate import generate
from models.video_file import read_generation_metadata
from tasks.generation.generate import VIDEOS, GenerationConfig, OutOfMemory
from tasks.generation.record import NothingGenerated
from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tests.models.tiny_text_to_video import write_lite

CONFIG = GenerationConfig(frames=5, height=32, width=48, steps=2, codec="lite", text="lite", dtype="float32")
PROMPTS = ["a cat runs", "a dog\0", "two birds"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite")
    write_lite(folder)
    return str(folder)


@pytest.fixture(scope="module")
def out(tmp_path_factory, checkpoint, prefect_api):
    """A run of three prompts in two batches; one of the prompts cannot be made."""
    out = tmp_path_factory.mktemp("generated")
    generate(checkpoint, str(out), PROMPTS, batch_size=2, devices=["cpu"], config=CONFIG)
    return out


def run(checkpoint, out, *prompts, **options):
    return generate(checkpoint, str(out), list(prompts), devices=["cpu"], **({"config": CONFIG} | options))


def videos(out: Path) -> dict[str, int]:
    """The videos and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}


def test_each_prompt_becomes_a_video_or_a_row_with_its_error(out):
    table = storage.read_table(str(out / "videos.parquet"))
    rows = table.to_pylist()
    assert table.schema.names == VIDEOS.names
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["error"] for row in rows] == [None, "generate: the prompt has a NUL character in it", None]
    assert sorted(videos(out)) == ["00000-a-cat-runs-0.mp4", "00002-two-birds-0.mp4"]
    for row in (rows[0], rows[2]):
        assert read_generation_metadata(str(out / row["uri"])).prompt == row["prompt"]
        assert row["seconds"] > 0


def test_the_run_record_says_what_was_run_on_what(out, checkpoint):
    record = json.loads((out / "run.json").read_text())
    assert GenerationConfig.model_validate(record["config"]) == CONFIG
    assert record["counts"] == {"prompts": 3, "videos": 2, "failed": 1}
    assert (record["checkpoint"]["folder"], record["devices"]) == (checkpoint, ["cpu"])
    assert {"preflight", "generate", "gallery"} <= set(record["seconds"])
    assert "torch" in record["versions"]


def test_the_prefect_ui_gets_a_gallery_a_page_and_progress(out):
    with get_client(sync_client=True) as client:
        all_runs = client.read_artifacts()
    (page,) = (a for a in all_runs if a.key == "generation-page" and f"file://{out}/gallery.html" in a.data)
    artifacts = {a.key: a for a in all_runs if a.flow_run_id == page.flow_run_id}
    assert artifacts["generation-gallery"].type == "markdown"
    assert "data:image/jpeg;base64," in artifacts["generation-gallery"].data
    assert artifacts["generation-progress"].data == 100
    assert artifacts["generation-batch"].data == 100


def test_a_second_run_makes_no_video_and_keeps_what_is_known_of_each(checkpoint, tmp_path, prefect_api):
    run(checkpoint, tmp_path, "a cat", "a dog")
    before, table = videos(tmp_path), storage.read_table(str(tmp_path / "videos.parquet"))
    run(checkpoint, tmp_path, "a cat", "a dog", batch_size=2)
    assert videos(tmp_path) == before
    run(checkpoint, tmp_path, "a cat", "a dog")
    assert storage.read_table(str(tmp_path / "videos.parquet")) == table

    run(checkpoint, tmp_path, "a cat", "a dog", "a bird")
    assert {name: videos(tmp_path)[name] for name in before} == before
    assert len(videos(tmp_path)) == 3

    other = CONFIG.model_copy(update={"guidance": 2.0})
    run(checkpoint, tmp_path, "a cat", "a dog", config=other)
    assert all(videos(tmp_path)[name] > time for name, time in before.items())


def test_a_run_without_a_single_video_fails_with_the_reason_and_leaves_its_table(checkpoint, tmp_path, prefect_api):
    with pytest.raises(NothingGenerated, match="no video of 2 was made; 2 ended with: generate: the prompt has a NUL"):
        run(checkpoint, tmp_path, "a\0cat", "a\0dog")
    assert (tmp_path / "videos.parquet").exists() and (tmp_path / "gallery.html").exists()


def test_no_memory_fails_the_run_at_once_and_no_later_batch_is_tried(checkpoint, tmp_path, prefect_api):
    huge = CONFIG.model_copy(update={"frames": 400_001, "height": 16_384, "width": 16_384})
    with pytest.raises(OutOfMemory, match="ask for fewer frames or a smaller size"):
        run(checkpoint, tmp_path, *map(str, range(20)), config=huge)
    assert not (tmp_path / "run.json").exists()
    assert not (tmp_path / "videos").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"config": CONFIG.model_copy(update={"frames": 126})}, "126 frames .* the nearest is 125"),
        ({"config": CONFIG.model_copy(update={"codec": "wan"})}, r"lacks vae/config\.json.*pass codec 'lite'"),
        ({"prompts": [""]}, "either 'prompts'"),
        ({"output": "/proc/generated"}, "cannot be written"),
    ],
)
def test_preflight_tells_what_is_wrong_before_any_work(checkpoint, tmp_path, prefect_api, options, words):
    given = {"checkpoint": checkpoint, "output": str(tmp_path / "out"), "prompts": ["a"], "config": CONFIG} | options
    with pytest.raises(PreflightError, match=words):
        generate(**given)
    assert not (tmp_path / "out" / "steps").exists()


def test_the_deployment_names_this_flow_and_its_form_explains_every_setting():
    deployments = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    entry = next(deployment for deployment in deployments if deployment["name"] == "generate")
    flow = load_flow_from_entrypoint(entry["entrypoint"])
    assert flow.name == "generate" and entry["enforce_parameter_schema"]
    form = parameter_schema(flow)
    assert set(form.properties) == set(inspect.signature(generate.fn).parameters)
    assert set(form.required) == {"checkpoint", "output"}
    assert all(field.get("description") for field in form.properties.values())
    settings = form.definitions["GenerationConfig"]["properties"]
    assert all(field["description"] for field in settings.values())
    published = {"frames": 125, "height": 432, "width": 768, "fps": 24, "steps": 50, "guidance": 6.0, "shift": 17.0}
    assert {name: settings[name]["default"] for name in published} == published
