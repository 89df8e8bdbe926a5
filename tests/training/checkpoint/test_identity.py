"""What encoded the clips of a checkpoint is one of its facts."""

from dataclasses import asdict
from pathlib import Path

import pytest

from models.checkpoint import read_config, save_transformer
from models.transformer import ContentVTransformer
from tests.models.tiny_checkpoints import write_text_encoders, write_vae
from tests.training.small_data import small_recipe, small_run, write_data
from training.checkpoint.facts import write_facts
from training.checkpoint.identity import starting_weights
from training.data.manifest import open_manifest
from training.encode.encoder import encoder_fingerprint
from training.launch.preflight import PreflightError, preflight
from training.run import facts_of


def test_another_vae_is_refused_in_mid_run(tmp_path: Path) -> None:
    size = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "pooled_projection_dim": 40}
    data, folder = write_data(tmp_path / "data"), tmp_path / "start"
    save_transformer(ContentVTransformer(**size), folder / "transformer")
    write_vae(folder)
    write_text_encoders(folder)
    run = small_run(data, tmp_path / "out", checkpoint=str(folder), recipe=small_recipe(codec="wan", text="sd3"))
    encoder = encoder_fingerprint(run.checkpoint, run.recipe, "cpu")
    facts = facts_of(run, open_manifest(run.manifests).fingerprint, starting_weights(run.checkpoint), encoder)
    whole = tmp_path / "out" / "checkpoints" / "step-00000003"
    whole.mkdir(parents=True)
    write_facts(whole, facts | {"model": asdict(read_config(folder / "transformer")), "step": 3, "loss": None})
    preflight(run, 1)
    (weights,) = (folder / "vae").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PreflightError, match=r"of another run:\n  encoder is '.*' there and '.*' here"):
        preflight(run, 1)
