"""ModelSpec: every architectural fact of a checkpoint, in one frozen dataclass.

A family (weights/families) turns a Hugging Face ``config.json`` into a ModelSpec; the inventory,
the planner, the loader and the model are all driven by it, so no fact is written down twice.
Nothing here imports torch. All sizes are counts of elements unless a name says bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache


class NormKind(StrEnum):
    RMS = "rms"
    LAYER = "layer"


class NormPlacement(StrEnum):
    """Where a block is normalised: attention and MLP each, unless a parallel block shares one."""

    PRE = "pre"  # its input
    POST = "post"  # the sum of input and output, as GPT-1 did: the last sum needs no final norm
    BOTH = "both"  # its input, and its output before the sum
    OUTPUT = "output"  # its output alone, before the sum, as OLMo 2 did


class ParallelBlock(StrEnum):
    """Whether attention and MLP read the same input and are added up, instead of one by one."""

    NONE = "none"
    SHARED_NORM = "shared_norm"
    TWO_NORMS = "two_norms"


class QkNorm(StrEnum):
    """Norms of queries and keys, of the kind that the model's others are."""

    NONE = "none"
    HEAD = "head"  # each head by itself, all heads with the same head_dim weights
    EACH_HEAD = "each_head"  # each head by itself, with head_dim weights of its own
    WHOLE = "whole"  # all heads' channels together


class Activation(StrEnum):
    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    GELU_ERF = "gelu_erf"
    RELU = "relu"
    RELU2 = "relu2"
    XIELU = "xielu"  # with numbers that each layer has learned


class PositionKind(StrEnum):
    LEARNED = "learned"
    ROTARY = "rotary"
    ALIBI = "alibi"


class RopeScaling(StrEnum):
    """How rotary frequencies are stretched beyond the trained context."""

    NONE = "none"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"
    PROPORTIONAL = "proportional"


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864) and its scaling.

    ``original_max_positions`` is the context that the model was trained with before scaling. The
    frequency arithmetic for each kind is in kernels.rotary; a scaling that depends on length
    (dynamic, longrope) is fixed for the server's life from max_model_len.
    """

    theta: float = 10000.0
    dim: int = 0  # rotated channels per head; the rest pass through unchanged
    interleaved: bool = False  # False: pairs are (i, i + dim/2), as Hugging Face Llama
    scaling: RopeScaling = RopeScaling.NONE
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn and longrope; None: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn: round the correction range to whole channels
    # longrope: what each pair's frequency is divided by, up to the original context and beyond it
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    # proportional: of the dim / 2 pairs this part turns, by the frequencies that they have among
    # all of them; the others stand still
    proportion: float = 1.0


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Latent attention (DeepSeek-V2, arXiv 2405.04434): a token's keys and values are widened from
    one row of ``kv_rank`` channels, beside which stands one rotary key of ``rope_dim`` channels for
    all heads. The cache keeps these two alone.

    Of each head's ``head_dim`` channels of queries and keys the last ``rope_dim`` turn; its values
    have ``value_dim``. Queries are widened from ``query_rank`` channels, or made as always where it
    is 0. The narrow rows are normalised.
    """

    kv_rank: int
    rope_dim: int
    value_dim: int
    query_rank: int = 0


@dataclass(frozen=True, slots=True)
class AlibiSpec:
    """ALiBi (Press et al. 2022, arXiv 2108.12409): each head's scores fall by its slope for every
    position of distance. The slopes are those of kernels.alibi_slopes, times ``factor``."""

    max_bias: float = 8.0
    factor: float = 1.0  # Falcon's: the bias is scaled with the scores


@dataclass(frozen=True, slots=True)
class QueryScale:
    """Multiplies the queries of position p by ``1 + beta ln(1 + floor(p / length))``: beyond
    ``length`` tokens attention stays as sharp (Llama 4, Meta 2025)."""

    beta: float
    length: int


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """``sinks`` says that each query head has a learned score that takes a part of the softmax and
    gives no value, as gpt-oss has. ``value_norm`` says that each head's values are normalised by an
    RMS norm without weights; where ``values_are_keys`` there is no projection for them, and they
    are the keys before these are normalised and turned, as in Gemma 4."""

    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # multiplies q.k before the softmax
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    qk_norm_bias: bool = False
    qk_norm_after_rotary: bool = False
    soft_cap: float | None = None  # scores become cap x tanh(score / cap)
    query_scale: QueryScale | None = None
    qkv_clip: float | None = None  # queries, keys and values are clipped to -clip .. clip
    sinks: bool = False
    latent: LatentSpec | None = None
    value_norm: bool = False
    values_are_keys: bool = False
    own_kv: bool = True  # False: no keys and values of its own, it reads another layer's

    @property
    def query_size(self) -> int:
        """Channels of all query heads together."""
        return self.num_query_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Channels of all key heads together (the value heads have as many)."""
        return self.num_kv_heads * self.head_dim

    @property
    def projections(self) -> dict[str, int]:
        """The projections of what a layer is given to its heads, and the channels of each."""
        if not self.own_kv:
            return {"query": self.query_size}
        values = {} if self.values_are_keys else {"value": self.kv_size}
        return {"query": self.query_size, "key": self.kv_size, **values}

    @property
    def heads(self) -> tuple[int, int, int]:
        """(query heads, kv heads, head_dim): what the arithmetic of scores sees of it."""
        return self.num_query_heads, self.num_kv_heads, self.head_dim

    @property
    def attended_size(self) -> int:
        """Channels of what attention gives: of all query heads' values together."""
        width = self.head_dim if self.latent is None else self.latent.value_dim
        return self.num_query_heads * width

    @property
    def cached_rows(self) -> tuple[int, int]:
        """(rows, channels of a row) that one token keeps in one layer's KV cache: K and V of every
        kv head, or the latent row."""
        if self.latent is not None:
            return 1, self.latent.kv_rank + self.latent.rope_dim
        return 2 * self.num_kv_heads, self.head_dim


@lru_cache(maxsize=16)  # a plan asks for each layer's, at every size that it tries
def _without_kv(heads: AttentionSpec) -> AttentionSpec:
    return replace(heads, own_kv=False)


@dataclass(frozen=True, slots=True)
class MlpSpec:
    intermediate_size: int
    activation: Activation
    gated: bool  # True: down(act(gate(x)) * up(x)); False: down(act(up(x)))
    bias: bool = False


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """A mixture of MLPs, of which a router chooses some for each token.

    The first ``num_dense_layers`` layers keep the plain MLP of MlpSpec. ``shared_size`` is the
    inner width of the MLP that every token passes as well, 0 where there is none; ``shared_gate``
    says that a gate of one row weighs it, ``router_bias`` that the router's scores have one.
    """

    count: int
    chosen: int  # per token
    intermediate_size: int  # of one expert
    shared_size: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    num_dense_layers: int = 0


@dataclass(frozen=True, slots=True)
class NormSpec:
    """``unit_offset`` says that checkpoints store weights less 1, as Gemma's and Nemotron's do: 1
    is added in float32 where they are used, since 16 bits would round the sum."""

    kind: NormKind
    epsilon: float
    placement: NormPlacement = NormPlacement.PRE
    bias: bool = True  # of Layer norms; an RMS norm has none
    weight: bool = True  # OLMo's norms have neither weights nor biases
    unit_offset: bool = False

    @property
    def weight_offset(self) -> float:
        """What is added to the weights before they multiply."""
        return 1.0 if self.unit_offset else 0.0

    @property
    def has_bias(self) -> bool:
        return self.kind is NormKind.LAYER and self.weight and self.bias


@dataclass(frozen=True, slots=True)
class LayerInputSpec:
    """Inputs of each layer beside the stream (Gemma 3n and 4): a token has ``size`` channels for
    each of the layers, from a table of their own of ``vocab_size`` rows and from its embedding.
    Behind its MLP a layer narrows the stream to ``size``, weighs its input with it, and adds the
    result, widened and normalised."""

    size: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One decoder-only transformer.

    ``max_positions`` is the context that config.json states, in tokens; a scaling of rotary
    positions may stretch it. ``parameter_dtype`` is the checkpoint's own dtype as a
    canonical format name (weights.formats). ``eos_token_ids`` are config.json's; those
    that generation_config.json names take their place (weights.generation).

    ``windows`` has an entry a layer: the tokens that it looks back at, its own included, 0 for all
    of them; empty where every layer sees all. Layers with a window turn by ``local_rope`` and have
    the heads of ``local_attention`` where there is one. ``alibi`` is how far ALiBi's scores fall,
    where positions are told so. ``rotary_layers`` has an entry a layer: whether its queries and
    keys turn; empty where those of every layer do. ``position_offset`` is the row of the learned
    table that the first token reads. ``embedding_scale``, ``residual_scale`` and ``logit_scale``
    multiply the embedding, what each block adds to the residual stream, and the logits (before
    their cap). A ``rounded_embedding_scale`` is rounded to the format of the weights first, as
    Gemma's is. ``stream_scale`` says that each layer has a number that multiplies the stream behind
    it, ``embedding_norm`` that the embedding is normalised before the first layer.
    The last ``num_kv_shared_layers`` have no keys and values of their own, and an MLP of
    ``shared_intermediate_size`` where that is not 0; ``layer_input`` are what layers are given
    beside the stream.
    ``embedding_size`` is the width of the tables of tokens where matrices without a bias lead from
    it to ``hidden_size`` and back, as in OPT 350m; 0 where it is ``hidden_size`` itself.

    A spec may describe more than the engine computes: server.startup.supported_models tells what.
    """

    family: str
    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    attention: AttentionSpec
    mlp: MlpSpec
    norm: NormSpec
    position: PositionKind
    max_positions: int
    tied_unembedding: bool
    parameter_dtype: str
    rope: RopeSpec = field(default_factory=RopeSpec)
    alibi: AlibiSpec = field(default_factory=AlibiSpec)
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    parallel: ParallelBlock = ParallelBlock.NONE
    experts: ExpertsSpec | None = None
    windows: tuple[int, ...] = ()
    local_rope: RopeSpec | None = None
    local_attention: AttentionSpec | None = None
    rotary_layers: tuple[bool, ...] = ()
    position_offset: int = 0
    embedding_scale: float = 1.0
    rounded_embedding_scale: bool = False
    embedding_norm: bool = False
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    unembedding_bias: bool = False
    embedding_size: int = 0
    stream_scale: bool = False
    num_kv_shared_layers: int = 0
    shared_intermediate_size: int = 0
    layer_input: LayerInputSpec | None = None

    def __post_init__(self) -> None:
        for name in ("windows", "rotary_layers"):
            entries = len(getattr(self, name))
            if entries not in (0, self.num_layers):
                raise ValueError(f"{name} has {entries} entries for {self.num_layers} layers")

    @property
    def table_width(self) -> int:
        """Channels of a row of the embedding and of the unembedding."""
        return self.embedding_size or self.hidden_size

    def has_experts(self, layer: int) -> bool:
        """Whether that layer's MLP is a mixture of experts."""
        return self.experts is not None and layer >= self.experts.num_dense_layers

    def window(self, layer: int) -> int:
        """Tokens that the layer looks back at, its own included; 0 for all."""
        return self.windows[layer] if self.windows else 0

    def layer_rope(self, layer: int) -> RopeSpec | None:
        """How the layer's queries and keys turn; None where they do not."""
        if self.position is not PositionKind.ROTARY:
            return None
        if self.rotary_layers and not self.rotary_layers[layer]:
            return None
        return self.local_rope if self.local_rope and self.window(layer) else self.rope

    def layer_attention(self, layer: int) -> AttentionSpec:
        """The layer's heads."""
        local = self.local_attention
        heads = local if local is not None and self.window(layer) else self.attention
        return heads if self.keeps_kv(layer) else _without_kv(heads)

    def keeps_kv(self, layer: int) -> bool:
        """Whether the layer has keys and values of its own."""
        return layer < self.num_layers - self.num_kv_shared_layers

    def kv_layer(self, layer: int) -> int:
        """The layer whose keys and values it reads: its own but for the last
        ``num_kv_shared_layers``, which read the last one before them that looks back alike."""
        if self.keeps_kv(layer):
            return layer
        owners = range(self.num_layers - self.num_kv_shared_layers)
        return max(i for i in owners if self.window(i) == self.window(layer))

    def layer_mlp(self, layer: int) -> MlpSpec:
        """The layer's plain MLP, which may have another width where keys and values are shared."""
        if not self.shared_intermediate_size or self.keeps_kv(layer):
            return self.mlp
        return replace(self.mlp, intermediate_size=self.shared_intermediate_size)

    @property
    def heads_in_words(self) -> str:
        """Query and kv heads, for people."""
        heads, local = self.attention, self.local_attention
        text = f"{heads.num_query_heads}/{heads.num_kv_heads} heads of {heads.head_dim}"
        if local is None:
            return text
        kinds = f"{local.num_query_heads}/{local.num_kv_heads} of {local.head_dim}"
        return f"{text} ({kinds} in layers with a window)"

    def as_layer(self, layer: int) -> ModelSpec:
        """The model in which every layer's heads are like this one's: what is the same in all of
        its layers may be asked of it."""
        if self.local_attention is None and not self.num_kv_shared_layers:
            return self
        return replace(
            self,
            attention=self.layer_attention(layer),
            mlp=self.layer_mlp(layer),
            num_kv_shared_layers=0,
            local_attention=None,
            rope=self.layer_rope(layer) or self.rope,
            local_rope=None,
            windows=(self.window(layer),) * self.num_layers,
        )

    @property
    def kinds_of_layers(self) -> tuple[int, ...]:
        """The first layer of each kind: of heads, and of those with keys of their own and those
        without. One where all are alike."""
        if self.local_attention is None and not self.num_kv_shared_layers:
            return (0,)
        kinds: dict[AttentionSpec, int] = {}
        for layer in range(self.num_layers):
            kinds.setdefault(self.layer_attention(layer), layer)
        return tuple(kinds.values())

    def layers_like(self, kind: int) -> list[int]:
        """The layers of one of ``kinds_of_layers``."""
        heads = self.layer_attention(kind)
        return [i for i in range(self.num_layers) if self.layer_attention(i) == heads]

    def kv_elements(self, layer: int) -> int:
        """Elements that one token keeps in the layer's KV cache."""
        rows, channels = self.layer_attention(layer).cached_rows
        return rows * channels
