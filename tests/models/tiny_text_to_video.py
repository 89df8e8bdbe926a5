"""A tiny Stable Diffusion 3.5 folder, and the ContentV folder that becomes of it, with random weights."""

from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel

from models.adaptation import adapt
from models.checkpoint import save_transformer
from tests.models.tiny_checkpoints import POOLED_DIM, T5_WIDTH, write_text_encoders, write_vae


def write_image_model(folder: Path, seed: int = 0, joint: int = T5_WIDTH, pooled: int = POOLED_DIM) -> None:
    """Write ``transformer`` under ``folder`` as diffusers writes that of SD3.5-Large: two layers, two heads of 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SD3Transformer2DModel(
            sample_size=16,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=32,
            joint_attention_dim=joint,
            caption_projection_dim=64,
            pooled_projection_dim=pooled,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )
    network.save_pretrained(folder / "transformer", max_shard_size="200KB")


def write_text_to_video(folder: Path) -> None:
    """Write a ContentV folder: the transformer adapted from an image model, the Wan VAE, three text encoders."""
    image_model = folder / "image-model"
    write_image_model(image_model)
    transformer, _ = adapt(image_model)
    save_transformer(transformer, folder / "transformer", max_shard_bytes=200_000)
    write_vae(folder)
    write_text_encoders(folder)


def write_lite(folder: Path) -> None:
    """Write a folder that has only a transformer, as wide as the hashed words are."""
    write_image_model(folder / "image-model", joint=4096, pooled=2048)
    transformer, _ = adapt(folder / "image-model")
    save_transformer(transformer, folder / "transformer")
