"""Small ModelSpecs for tests: a real family's shape at a size that a test can afford. No torch."""

from __future__ import annotations

from dataclasses import replace

from weights.spec import (
    Activation,
    AttentionSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    PositionKind,
    RopeSpec,
)

BOS_TOKEN_ID = 1
EOS_TOKEN_ID = 2


def tiny_llama(
    *,
    num_query_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    hidden_size: int = 64,
    num_layers: int = 3,
    intermediate_size: int = 160,
    vocab_size: int = 512,
    max_positions: int = 512,
    tied: bool = False,
    rope: RopeSpec | None = None,
    activation: Activation = Activation.SILU,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    parameter_dtype: str = "f32",
) -> ModelSpec:
    """A llama. ``rope`` may leave ``dim`` and ``original_max_positions`` at 0: they are filled in
    from head_dim and max_positions."""
    given = rope or RopeSpec()
    return ModelSpec(
        family="llama",
        architecture="LlamaForCausalLM",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        attention=AttentionSpec(
            num_query_heads=num_query_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            qkv_bias=attention_bias,
            output_bias=attention_bias,
        ),
        mlp=MlpSpec(intermediate_size, activation, gated=True, bias=mlp_bias),
        norm=NormSpec(NormKind.RMS, 1e-6),
        position=PositionKind.ROTARY,
        max_positions=max_positions,
        tied_unembedding=tied,
        parameter_dtype=parameter_dtype,
        rope=_filled(given, head_dim, max_positions),
        bos_token_id=BOS_TOKEN_ID,
        eos_token_ids=(EOS_TOKEN_ID,),
    )


def tiny_gpt2(
    *,
    num_heads: int = 4,
    hidden_size: int = 64,
    num_layers: int = 3,
    intermediate_size: int | None = None,
    vocab_size: int = 512,
    max_positions: int = 512,
    tied: bool = True,
    activation: Activation = Activation.GELU_TANH,
    parameter_dtype: str = "f32",
) -> ModelSpec:
    """A gpt2; ``hidden_size`` must be a multiple of ``num_heads``."""
    head_dim = hidden_size // num_heads
    return ModelSpec(
        family="gpt2",
        architecture="GPT2LMHeadModel",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        attention=AttentionSpec(
            num_query_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            qkv_bias=True,
            output_bias=True,
        ),
        mlp=MlpSpec(intermediate_size or 4 * hidden_size, activation, gated=False, bias=True),
        norm=NormSpec(NormKind.LAYER, 1e-5),
        position=PositionKind.LEARNED,
        max_positions=max_positions,
        tied_unembedding=tied,
        parameter_dtype=parameter_dtype,
        bos_token_id=BOS_TOKEN_ID,
        eos_token_ids=(EOS_TOKEN_ID,),
    )


def tiny_bloom(
    *,
    num_heads: int = 6,
    hidden_size: int = 96,
    num_layers: int = 3,
    vocab_size: int = 512,
    max_positions: int = 512,
    tied: bool = True,
    parameter_dtype: str = "f32",
) -> ModelSpec:
    """A bloom; ``hidden_size`` must be a multiple of ``num_heads``, which may be any number."""
    like = tiny_gpt2(
        num_heads=num_heads,
        hidden_size=hidden_size,
        num_layers=num_layers,
        vocab_size=vocab_size,
        max_positions=max_positions,
        tied=tied,
        parameter_dtype=parameter_dtype,
    )
    return replace(
        like,
        family="bloom",
        architecture="BloomForCausalLM",
        position=PositionKind.ALIBI,
        embedding_norm=True,
    )


def _filled(rope: RopeSpec, head_dim: int, max_positions: int) -> RopeSpec:
    return replace(
        rope,
        dim=rope.dim or head_dim,
        original_max_positions=rope.original_max_positions or max_positions,
    )
