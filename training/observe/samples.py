"""Sample videos of a run: the averaged weights asked for a few prompts, always from the same noise.

Every rank samples: the ranks together hold the model, so all make as many passes. Their prompts differ, and the first
ranks write what they made. A rank makes its video whole: prompts are spread over ranks, tokens are not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.codec import LATENT_CHANNELS
from models.dct_codec import DctCodec
from models.sampler import sample
from models.text_encoders import TextEmbedding
from models.video_file import GenerationMetadata, read_generation_metadata, write_video
from models.wan_vae import WanCodec, load_wan_codec
from training.checkpoint.checkpoints import State
from training.checkpoint.names import step_name
from training.data.buckets import Bucket, shape_of
from training.data.manifest import Manifest, Rows
from training.data.selection import select
from training.distributed.parallel import Parallel
from training.encode.encoding import Embed
from training.recipe import Recipe
from training.run import TrainingRun

DECODE_BYTES = 8 * 10**9  # that the VAE may take beside the model's shards: a whole frame of 432 x 768


class Sampler:
    """Makes the sample videos of a run. All ranks make one, and call it alike.

    Args:
        run: videos go to samples/step-.../ below its output.
        digest: names the run in each video's metadata.
        embed: on rank 0, to embed the prompts, once; None elsewhere.
    """

    def __init__(
        self, run: TrainingRun, digest: str, manifest: Manifest, parallel: Parallel, embed: Embed | None
    ) -> None:
        recipe, config = run.recipe, run.record
        self._recipe, self._config, self._parallel, self._digest = recipe, config, parallel, digest
        self._folder, self._source = run.folder / "samples", run.checkpoint
        rows = select(manifest, recipe).rows
        bucket = sampled_bucket(rows, recipe)
        self._shape = shape_of(bucket, recipe)
        self.prompts = list(config.prompts) or manifest.captions(rows[bucket], recipe.caption, config.sample_count)
        self._text = _shared(self.prompts, embed, self._folder / "prompts.safetensors", parallel)

    def made(self, step: int) -> bool:
        """Whether the videos of a step are there, and of this run."""
        return all(self._is_ours(self._path(index, step)) for index in range(len(self.prompts)))

    def _is_ours(self, path: Path) -> bool:
        try:
            tags = read_generation_metadata(str(path))
        except (OSError, ValueError):  # not there, or no video of ours
            return False
        return tags.config.get("run") == self._digest

    def __call__(self, state: State, step: int) -> None:
        """Sample with the weights averaged over ``step`` steps, and write a video of each prompt."""
        parallel = self._parallel
        with torch.no_grad(), state.ema.applied(state.model), parallel.whole(state.model):
            for first in range(0, len(self.prompts), parallel.layout.world):
                place = first + parallel.rank
                index = min(place, len(self.prompts) - 1)  # ranks without a prompt keep the others company
                latents = sample(
                    state.model,
                    self._embedding(index),
                    self._embedding(len(self.prompts)),
                    (LATENT_CHANNELS, *self._shape.latent),
                    seeds=[index],
                    steps=self._config.sample_steps,
                    guidance=self._config.sample_guidance,
                    shift=self._config.sample_shift,
                )
                if place == index:
                    self._write(latents, index, step)
        if parallel.cpu_group is not None:
            dist.barrier(group=parallel.cpu_group)

    def _embedding(self, index: int) -> TextEmbedding:
        tokens, pooled = (
            self._text[name][index : index + 1].to(self._parallel.device) for name in ("tokens", "pooled")
        )
        return TextEmbedding(tokens, pooled)

    def _write(self, latents: Tensor, index: int, step: int) -> None:
        codec = decoder(self._recipe, self._source).to(self._parallel.device)
        video = codec.decode(latents)[0].cpu()
        config = {"recipe": self._recipe.name, "step": step, "run": self._digest}
        tags = GenerationMetadata(self.prompts[index], index, config)
        write_video(video, str(self._path(index, step)), tags, self._recipe.fps)

    def _path(self, index: int, step: int) -> Path:
        return self._folder / step_name(step) / f"{index:02d}.mp4"


def sampled_bucket(rows: Mapping[Bucket, Rows], recipe: Recipe) -> Bucket:
    """The bucket that sample videos have the shape of: of the longest that are trained on, that of most clips.

    Images where the recipe trains on no videos, whatever frames it allows.
    """
    videos = "videos" in recipe.kinds
    trained = {bucket: len(own) for bucket, own in rows.items() if bool(bucket.duration_s) == videos}
    return max(trained, key=lambda bucket: (shape_of(bucket, recipe).frames, trained[bucket], bucket))


def decoder(recipe: Recipe, source: str) -> DctCodec | WanCodec:
    if recipe.codec == "lite":
        return DctCodec()
    return load_wan_codec(Path(source) / "vae", memory_bytes=DECODE_BYTES)


def _shared(prompts: Sequence[str], embed: Embed | None, file: Path, parallel: Parallel) -> dict[str, Tensor]:
    """Tokens and pooled of the prompts, and last of the empty one. Rank 0 makes them, all read them from ``file``.

    They are float32 whatever text encoders compute in, as sampling gives the model latents in the dtype of its text.
    """
    if embed is not None:
        tokens, pooled = zip(*(embed(prompt) for prompt in [*prompts, ""]), strict=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": torch.stack(tokens).float(), "pooled": torch.stack(pooled).float()}, file)
    if parallel.cpu_group is not None:
        dist.barrier(group=parallel.cpu_group)
    return load_file(file)
