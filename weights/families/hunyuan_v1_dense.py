"""Hunyuan, dense, 0.5B to 7B (Tencent 2025): Llama's block; each head of queries and keys is
normalised after it has turned, and theta is stretched by a fixed alpha."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.keys import words
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, QkNorm

_ROPE = RopeDefaults(alpha=True)
_DENSE = "the dense models have one MLP in every layer, and attention of its own in each"


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(
        facts,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm.HEAD,
        qk_norm_after_rotary=True,
    )
    facts.only("attention_head_dim", attention.head_dim, "head_dim says it")
    for key, served in _ONLY.items():
        facts.only(key, served, _DENSE)
    return decoders.read_decoder(
        facts,
        family="hunyuan_v1_dense",
        attention=attention,
        norm=decoders.rms_norm(facts, 1e-5),
        max_positions=2048,
        rope=_ROPE,
        bos=1,
        eos=2,
    )


# What published files say of the mixtures that share their code.
_ONLY = {
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
    "norm_type": "rms",
    "mlp_bias": False,
    "num_experts": 1,
    "use_cla": False,
    "use_mla": False,
    "use_mixed_mlp_moe": False,
    "position_embedding_xdrope": False,
}

FAMILY = Family(
    name="hunyuan_v1_dense",
    architecture="HunYuanDenseV1ForCausalLM",
    other_names=("HunYuanDenseV1Model",),
    model_type="hunyuan_v1_dense",
    prefix="model.",
    sources=decoders.names(
        *decoders.INPUT_NORMS,
        *decoders.ATTENTION,
        *decoders.in_layer("self_attn.query_layernorm", "attention.query_norm"),
        *decoders.in_layer("self_attn.key_layernorm", "attention.key_norm"),
        *decoders.GATED_MLP,
    ),
    skips=decoders.SKIPS,
    harmless=words(
        """
        pretraining_tp eod_token_id org_vocab_size pool_type dense_list cla_share_factor
        moe_topk moe_intermediate_size moe_layer_num_skipped moe_drop_tokens
        moe_random_routing_dropped_token num_shared_expert routed_scaling_factor norm_topk_prob
        group_limited_greedy topk_group anyres_pooling_size vit_input_resolution
        vit_mapping_type vit_norm_type vit_patch vit_token
        """
    ),
    read=_read,
)
