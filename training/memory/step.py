"""What a training step takes of a device's memory, in closed form: the arithmetic of the code, term by term.

| part | bytes |
|---|---|
| state | 20 a parameter, over the ranks of a shard group: float32 weights, gradients, two moments, average |
| gathered | under FSDP2, the weights of two blocks, in the dtype of computing |
| kept | what autograd keeps of the forward pass for the backward: 20 numbers a token, channel and block, if all |
| peak | what the backward pass of a block has at once besides: more than what is kept of it, and its gradients |

``kept`` equals what autograd keeps to the byte. The peaks follow the order in which autograd runs a block; programs
that compare them with what is allocated are in ``benchmarks/planner.py``.
"""

from dataclasses import dataclass
from functools import lru_cache

from models.blocks import FREQUENCIES, MLP_RATIO
from models.flops import parameters
from models.recompute import Mode, Recompute
from models.transformer import TransformerConfig
from training.distributed.layout import Layout
from training.distributed.machine import Device, Dtype

FLOAT32 = 4
MOMENTS = 2  # of AdamW
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
MODES: tuple[Mode, ...] = ("none", "attention", "full")  # each keeps less than the one before
# For each head and token: PyTorch's kernels keep the logarithm of the sum of exponentials, Ascend's keeps maximum and
# sum, each eight times over.
SOFTMAX_BYTES = {"cpu": FLOAT32, "cuda": FLOAT32, "npu": 2 * 8 * FLOAT32}

# Left free: the driver's context, the kernels, and each communicator's buffers (HCCL takes 400 MB, and there are the
# ranks, the shards, the replicas and the sequence); on the CPU, Python and PyTorch themselves.
RESERVE_BYTES = {"cpu": 2**29, "cuda": 2 * 2**30, "npu": 3 * 2**30}
RESERVE_SHARE = 0.05  # of the memory: what the allocator has in pieces too small to be used


@dataclass(frozen=True)
class Setup:
    """What decides the memory of a step, but for the shapes of its samples."""

    config: TransformerConfig
    layout: Layout
    dtype: Dtype = "float32"
    recompute: Mode = "none"
    device: Device = "cpu"
    recompute_every: int = 1

    @property
    def recomputation(self) -> Recompute:
        """The policy for the model's blocks."""
        return Recompute(self.recompute, self.recompute_every)

    @property
    def number(self) -> int:
        """Bytes of a number in the dtype of computing."""
        return 2 if self.dtype == "bfloat16" else FLOAT32

    @property
    def fully_sharded(self) -> bool:
        """Whether FSDP2 wraps the model: one rank that computes in float32 needs none."""
        return self.layout.world > 1 or self.dtype != "float32"


@dataclass(frozen=True)
class StateBytes:
    """Bytes on one rank of what stays from step to step."""

    weights: int
    gradients: int
    moments: int
    average: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.average


@dataclass(frozen=True)
class Tokens:
    """The tokens of a micro-batch: of each sample, as it is whole."""

    samples: int
    video: int
    text: int


def state(setup: Setup) -> StateBytes:
    """All float32 and spread over the shard group. Gradients that accumulate are reduced, so they are spread too."""
    each = -(-parameters(setup.config) // setup.layout.shard) * FLOAT32
    return StateBytes(weights=each, gradients=each, moments=MOMENTS * each, average=each)


def gathered(setup: Setup) -> int:
    """Bytes of the weights that a rank computes with, in the dtype of computing: none where it has the state's alone.

    FSDP2 has two blocks at once: the one at work and the one that comes next, as it was received; and all that is in
    no block.
    """
    blocks = 2 if setup.config.num_layers > 1 else 1
    weights = blocks * block_parameters(setup.config) + _parameters_of_ends(setup.config)
    return weights * setup.number if setup.fully_sharded else 0


@lru_cache
def _parameters_of_ends(config: TransformerConfig) -> int:
    return parameters(config) - sum(block_parameters(config, index) for index in range(config.num_layers))


@lru_cache
def block_parameters(config: TransformerConfig, index: int = 0) -> int:
    """Parameters of a block; the last has no use for what follows the attention of its text."""
    dim = config.inner_dim
    linear = {False: (6 + 4 + 2 * MLP_RATIO) * dim**2 + (6 + 4 + MLP_RATIO + 1) * dim, True: 5 * dim**2 + 5 * dim}
    return 2 * 2 * config.attention_head_dim + linear[False] + linear[index == config.num_layers - 1]


@dataclass(frozen=True)
class _Rank:
    """Bytes on one rank of the tensors that a micro-batch meets; ``video`` and ``text`` are those of one tensor."""

    setup: Setup
    tokens: Tokens

    @property
    def shard(self) -> tuple[int, int]:
        """Tokens of video and text here, padding included."""
        ranks = self.setup.layout.sequence
        return -(-self.tokens.video // ranks), -(-self.tokens.text // ranks)

    @property
    def vector(self) -> int:
        """One number for each channel of each sample."""
        return self.tokens.samples * self.setup.config.inner_dim * self.setup.number

    @property
    def video(self) -> int:
        return self.shard[0] * self.vector

    @property
    def text(self) -> int:
        return self.shard[1] * self.vector

    @property
    def heads(self) -> int:
        """Heads that this rank attends with, padding included."""
        return -(-self.setup.config.num_attention_heads // self.setup.layout.sequence)

    @property
    def attended(self) -> int:
        """One tensor of attention: all tokens of this rank's heads. Without sequence parallelism, all heads."""
        tokens = self.tokens.video + self.tokens.text
        return self.tokens.samples * tokens * self.heads * self.setup.config.attention_head_dim * self.setup.number

    @property
    def attention(self) -> int:
        """What attention puts out: its result and the statistics of its softmax."""
        rows = self.tokens.samples * (self.tokens.video + self.tokens.text) * self.heads
        return self.attended + rows * SOFTMAX_BYTES[self.setup.device]

    @property
    def exchanged(self) -> int:
        """One tensor on its way between shards of tokens and shards of heads, both padded."""
        c = self.setup.config
        return (
            self.tokens.samples
            * sum(self.shard)
            * self.setup.layout.sequence
            * self.heads
            * (c.attention_head_dim * self.setup.number)
        )

    def norm(self, tokens: int) -> int:
        """Mean and deviation of a layer norm."""
        return 2 * self.tokens.samples * tokens * (self.setup.number if self.setup.device == "cpu" else FLOAT32)

    def head_norms(self, tokens: int) -> int:
        """Deviations of the norms of queries and keys."""
        return 2 * self.tokens.samples * tokens * self.setup.config.num_attention_heads * FLOAT32


def kept(setup: Setup, tokens: Tokens) -> int:
    """Bytes of all that autograd keeps of a forward pass of the transformer on one rank, its inputs included."""
    rank = _Rank(setup, tokens)
    return _kept_by_ends(rank) + sum(_kept_by_block(rank, index) for index in range(setup.config.num_layers))


def _kept_by_ends(rank: _Rank) -> int:
    """Bytes that the embeddings and the last layer keep."""
    c, (video, text) = rank.setup.config, rank.shard
    samples, number = rank.tokens.samples, rank.setup.number
    inputs = video * c.patch_size**2 * c.in_channels + text * c.joint_attention_dim
    inputs += 2 * FREQUENCIES + c.pooled_projection_dim
    rotation = video * c.attention_head_dim * FLOAT32 if c.position == "rotary" else 0
    # Time and pooled text: each layer's output, its SiLU, and the same of their sum; then scale and shift, 1 + scale.
    return samples * inputs * number + rotation + (6 + 3) * rank.vector + _kept_by_output(rank)


def _kept_by_output(rank: _Rank) -> int:
    """The last block's video and the same modulated."""
    return 2 * rank.video + rank.norm(rank.shard[0])


def _kept_by_block(rank: _Rank, index: int) -> int:
    mode = rank.setup.recomputation.mode_of(index)
    if mode == "none":
        return _whole_block(rank, last=index == rank.setup.config.num_layers - 1)
    return rank.video + rank.text + (_kept_of_attention(rank) if mode == "attention" else 0)


def _kept_of_attention(rank: _Rank) -> int:
    """Bytes that mode "attention" keeps besides a block's inputs: what its attention and its exchanges brought."""
    exchanged = 0 if rank.setup.layout.sequence == 1 else (3 + 1) * rank.exchanged  # query, key, value; the output
    return rank.attention + exchanged


def _whole_block(rank: _Rank, last: bool) -> int:
    """All that a block's backward pass needs; of the last block's text only what attention needs."""
    one = rank.video + rank.text
    return one + _before_attention(rank) + 3 * rank.attended + rank.attention + _after_attention(rank, last)


def _before_attention(rank: _Rank) -> int:
    """Besides the block's inputs: both streams modulated, and queries and keys before their norms."""
    tokens = sum(rank.shard)
    return 3 * (rank.video + rank.text) + rank.norm(tokens) + rank.head_norms(tokens)


def _after_attention(rank: _Rank, last: bool) -> int:
    """The feed-forward layers' five and twice four, what attention added, and the shifts, scales and gates."""
    samples, (video, text) = rank.tokens.samples, rank.shard
    streams, tokens = (rank.video, video) if last else (rank.video + rank.text, video + text)
    copied = streams if samples > 1 else rank.video + rank.text
    if rank.setup.layout.sequence == 1 and rank.setup.device != "npu" and samples == 1:
        copied = 0  # the output layers read what attention wrote
    modulation = (6 + 2) + (2 + 1 if last else 6 + 2)
    return copied + (4 + 2 * MLP_RATIO) * streams + rank.norm(tokens) + modulation * rank.vector


def peak(setup: Setup, tokens: Tokens) -> int:
    """The most bytes, besides the state, that one rank has at once in a micro-batch's two passes."""
    return gathered(setup) + _data(setup, tokens) + max(_moments(_Rank(setup, tokens)).values())


def _data(setup: Setup, tokens: Tokens) -> int:
    """Bytes of latents, noise, their mixture and its patches, and of the text: float32 and whole on every rank.

    Patches and text are counted in ``kept`` where autograd keeps these very tensors, and no cast or shard of them.
    """
    c = setup.config
    latents = tokens.video * c.patch_size**2 * c.in_channels
    inputs = latents + tokens.text * c.joint_attention_dim + c.pooled_projection_dim
    copied = setup.dtype != "float32" or setup.layout.sequence > 1
    return tokens.samples * (3 * latents + (inputs if copied else 0)) * FLOAT32


def _moments(rank: _Rank) -> dict[str, int]:
    """Bytes at the moments of which one is the peak. Autograd runs a block from its end, text before video.

    Gradients of weights are reduced block by block, and stay as they were sent until the next are: those of the ends,
    which come last, until the next micro-batch's.
    """
    setup, layers = rank.setup, rank.setup.config.num_layers
    c = setup.config
    answer = rank.tokens.samples * rank.shard[0] * c.patch_size**2 * c.out_channels
    layer = MLP_RATIO * c.inner_dim**2 * setup.number  # the gradient of its weight
    kept_by = [_kept_by_block(rank, index) for index in range(layers)]
    below = _kept_by_ends(rank) - _kept_by_output(rank) + sum(kept_by[:-1])
    sent = _parameters_of_ends(c) * FLOAT32 if setup.fully_sharded else 0
    again = 0 if setup.recomputation.mode_of(layers - 1) == "none" else rank.video  # the gradient is there by then
    moments = {
        # answer, difference and its square, and gradients as large
        "loss": kept(setup, rank.tokens) + sent + answer * (setup.number + 4 * FLOAT32),
        # gradients of the block's output and of what the layer put out, and four times as wide of what it took in
        "last block": below + layer + sent + _whole_block(rank, True) + (1 + MLP_RATIO) * rank.video,
        # the last block of the forward pass, or of the backward pass where it is recomputed
        "attention": below + sent + again + _attending(rank),
    }
    for index in range(layers - 1, max(-1, layers - 4), -1):
        sent = block_parameters(c, index) * FLOAT32 if setup.fully_sharded else 0
        if setup.fully_sharded:
            moments[f"reducing {index}"] = below + rank.video + rank.text + _reducing(setup, index)
        if index:
            below -= kept_by[index - 1]
            block = below + layer + sent + _whole_block(rank, False)
            if setup.fully_sharded and index == 1:
                block -= block_parameters(c) * setup.number  # no block comes next
            moments[f"text {index - 1}"] = block + rank.video + (1 + MLP_RATIO) * rank.text
            moments[f"video {index - 1}"] = block + (1 + MLP_RATIO) * rank.video - (2 + 2 * MLP_RATIO) * rank.text
    return moments


def _reducing(setup: Setup, index: int) -> int:
    """As a block's gradients are summed: as they came, as they are sent and received; its weights have gone by then."""
    block = block_parameters(setup.config, index)
    received = 2 * FLOAT32 if setup.layout.shard == 1 else FLOAT32 / setup.layout.shard  # alone, FSDP2 copies twice
    return int(block * (setup.number + FLOAT32 + received)) - block_parameters(setup.config) * setup.number * (
        1 if index else 2
    )


def _attending(rank: _Rank) -> int:
    """What the last block has as it attends: inputs, what it keeps so far, and query, key, value as they travel."""
    here = rank.video + rank.text + _before_attention(rank) + 3 * (rank.video + rank.text) + rank.attention
    if rank.setup.layout.sequence == 1:
        return here
    # The three together: ready to be sent, as they came, in order, and without padding.
    return here + 3 * (3 * rank.exchanged + rank.attended)


def device_bytes(setup: Setup, tokens: Tokens, memory_bytes: int) -> int:
    """The most that one rank takes of a device of so much memory, in a step whose micro-batches are such."""
    return step_bytes(setup, tokens) + reserve(setup, memory_bytes)


def step_bytes(setup: Setup, tokens: Tokens) -> int:
    """The most bytes of tensors that one rank has at once in a step of such micro-batches, the state included."""
    # Where AdamW is not fused, it has the roots of its second moments.
    updating = FLOAT32 * -(-parameters(setup.config) // setup.layout.shard) if setup.device == "npu" else 0
    return state(setup).total + max(peak(setup, tokens), updating)


def reserve(setup: Setup, memory_bytes: int) -> int:
    """Bytes that are left to what is not counted."""
    return RESERVE_BYTES[setup.device] + int(RESERVE_SHARE * memory_bytes)
