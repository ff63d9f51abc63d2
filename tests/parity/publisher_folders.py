"""Folders as their publishers wrote them: a case that transformers 5 has saved, put back into the
words of transformers 4 and of the repository that the family is downloaded from.

What all have in common is done for every row: ``rope_theta`` and ``rope_scaling`` instead of
``rope_parameters``, ``torch_dtype``, no ``layer_types`` but where they were published, the keys
that each config.json carried, shards with an index. A row adds what is its own, and says where the
names are from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.parity.family_checkpoints import CASES, GPT, Case, write_case

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]
# Written by every save_pretrained of transformers 4, or beside it by the hub's tools.
_EVERYWHERE: Config = {"transformers_version": "4.40.0", "_name_or_path": "publisher/model"}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_SUMMARY: Config = {  # of heads that GPT-2's config class once had
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}


def _as_saved(tensors: Tensors, config: Config) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Published:
    """``names_from`` says who published, and where the names can be read. ``config`` are keys that
    the published file has besides, ``absent`` those that it leaves out; ``theta``,
    ``local_theta`` and ``partial`` are its words for the rotary base, that of layers with a window,
    and part. ``files`` are written beside the shards."""

    names_from: str
    case: int = 0
    config: Config = field(default_factory=dict)
    absent: tuple[str, ...] = ("layer_types",)
    tensors: Callable[[Tensors, Config], Tensors] = _as_saved
    theta: str = "rope_theta"
    local_theta: str | None = None
    partial: str = "partial_rotary_factor"
    scaling_word: str = "rope_type"
    files: Mapping[str, bytes] = field(default_factory=dict)


def write_published(family: str, folder: Path) -> Any:
    """Writes the family's folder, and returns the model that it holds, in float32."""
    row = PUBLISHED[family]
    model = write_case(case_of(family, row), folder)
    saved = json.loads((folder / "config.json").read_text())
    config = in_words_of_4(saved, row)
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    _write_shards(row.tensors(whole, saved), folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name, content in row.files.items():
        (folder / name).write_bytes(content)
    return model


def case_of(family: str, row: Published) -> Case:
    return Case("GPT2Config", base=GPT) if family == "gpt2" else CASES[family][row.case]


def in_words_of_4(saved: Config, row: Published) -> Config:
    left_out = (*row.absent, "rope_parameters", "dtype")
    config = {key: value for key, value in saved.items() if key not in left_out}
    ropes = saved.get("rope_parameters")
    if ropes is not None:
        by_kind = _FULL in ropes
        config |= _rope_in_words_of_4(ropes[_FULL] if by_kind else ropes, row)
        if by_kind and row.local_theta is not None:
            config[row.local_theta] = ropes[_SLIDING]["rope_theta"]
    return {**config, **_EVERYWHERE, "torch_dtype": "float32", **row.config}


def _rope_in_words_of_4(rope: Config, row: Published) -> Config:
    scaling = {
        key: value
        for key, value in rope.items()
        if key not in ("rope_theta", "partial_rotary_factor", "rope_type")
    }
    told: Config = {row.theta: rope["rope_theta"], "rope_scaling": None}
    if "partial_rotary_factor" in rope and row.partial not in row.absent:
        told[row.partial] = rope["partial_rotary_factor"]
    if rope["rope_type"] != "default":
        told["rope_scaling"] = {row.scaling_word: rope["rope_type"], **scaling}
    return told


def _write_shards(tensors: Tensors, folder: Path) -> None:
    """Two of them, the later half of the names first, as no reader may rely on their order."""
    names = sorted(tensors)
    parts = (names[len(names) // 2 :], names[: len(names) // 2])
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        held = {name: tensors[name].contiguous() for name in part}
        save_file(held, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(one.numel() * one.element_size() for one in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _layers(config: Config) -> range:
    keys = ("num_hidden_layers", "n_layer", "num_layers")
    return range(next(config[key] for key in keys if key in config))


def _with_frequencies(name: str) -> Callable[[Tensors, Config], Tensors]:
    """Each layer's rotary frequencies, as transformers 4 kept them until 4.31."""

    def change(tensors: Tensors, config: Config) -> Tensors:
        own = {name.format(i=i): torch.rand(4) for i in _layers(config)}
        return tensors | own

    return change


def _with_masks(name: str, dtype: torch.dtype) -> Callable[[Tensors, Config], Tensors]:
    """Each layer's causal mask, and the number that masked scores became."""

    def change(tensors: Tensors, config: Config) -> Tensors:
        masks: Tensors = {}
        for i in _layers(config):
            masks[f"{name.format(i=i)}.bias"] = torch.ones(1, 1, 8, 8).tril().to(dtype)
            masks[f"{name.format(i=i)}.masked_bias"] = torch.tensor(-1e9)
        return tensors | masks

    return change


def _with_head(embedding: str) -> Callable[[Tensors, Config], Tensors]:
    """A tied folder that holds its unembedding too."""

    def change(tensors: Tensors, config: Config) -> Tensors:
        return tensors | {"lm_head.weight": tensors[embedding].clone()}

    return change


def _without(prefix: str) -> Callable[[Tensors, Config], Tensors]:
    def change(tensors: Tensors, config: Config) -> Tensors:
        return {name.removeprefix(prefix): one for name, one in tensors.items()}

    return change


def _all(
    *changes: Callable[[Tensors, Config], Tensors],
) -> Callable[[Tensors, Config], Tensors]:
    def change(tensors: Tensors, config: Config) -> Tensors:
        for one in changes:
            tensors = one(tensors, config)
        return tensors

    return change


_INV_FREQ = _with_frequencies("model.layers.{i}.self_attn.rotary_emb.inv_freq")
_PHI3_CODE = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
}
PUBLISHED: dict[str, Published] = {
    "llama": Published(
        "meta-llama/Llama-2-7b-hf; inv_freq: gguf tensor_mapping.py ATTN_ROT_EMBD, and skipped by "
        "vllm/model_executor/models/llama.py",
        config={"pretraining_tp": 1},
        absent=("layer_types", "head_dim"),
        tensors=_INV_FREQ,
    ),
    "qwen2": Published(
        "Qwen/Qwen2.5-7B-Instruct and its README's rope_scaling",
        case=2,
        config={"use_mrope": False},
        scaling_word="type",
    ),
    "qwen3": Published(
        "Qwen/Qwen3-0.6B, whose file holds the tied lm_head.weight",
        config={"max_window_layers": 28},
        tensors=_with_head("model.embed_tokens.weight"),
    ),
    "mistral": Published(
        "mistralai/Mistral-7B-v0.3, whose folder holds the weights a second time in Mistral's own "
        "layout",
        files={"params.json": b"{}", "consolidated.safetensors": b"of another reader"},
    ),
    "gemma": Published(
        "google/gemma-2b: gelu is the one by tanh there", config={"hidden_act": "gelu"}
    ),
    "gemma2": Published(
        "google/gemma-2-2b",
        config={"cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh"},
    ),
    "gemma3": Published(
        "google/gemma-3-4b-pt's text_config and google/gemma-3-1b-pt",
        case=1,
        config={"cache_implementation": "hybrid"},
        absent=("_sliding_window_pattern",),
        local_theta="rope_local_base_freq",
    ),
    "gemma4": Published(
        "google/gemma-4-31B-it's text_config, which states wide heads once and its ropes by kind",
        config={
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "rope_parameters": {
                "full_attention": {
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1000000.0,
                    "rope_type": "proportional",
                },
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
            **dict.fromkeys(("rope_theta", "rope_scaling", "partial_rotary_factor")),
            "use_bidirectional_attention": "vision",
        },
        absent=("per_layer_config",),
    ),
    "phi3": Published(
        "microsoft/Phi-3.5-mini-instruct and Phi-4-mini-instruct: fused as "
        "vllm/model_executor/models/phi3.py expects; their code is that of transformers",
        case=1,
        config={
            "auto_map": _PHI3_CODE,
            "attention_bias": False,
            "full_attn_mod": 1,
            "interpolate_factor": 1,
        },
        scaling_word="type",
    ),
    "starcoder2": Published(
        "bigcode/starcoder2-15b",
        config={
            "mlp_type": "default",
            "norm_type": "layer_norm",
            "rms_norm_eps": 1e-5,
            "attention_dropout": 0.1,
            "residual_dropout": 0.1,
            "embedding_dropout": 0.1,
        },
    ),
    "granite": Published("ibm-granite/granite-3.1-2b-base", config={"attention_dropout": 0.1}),
    "smollm3": Published(
        "HuggingFaceTB/SmolLM3-3B", config={"max_window_layers": 28, "pretraining_tp": 2}, absent=()
    ),
    "seed_oss": Published(
        "ByteDance-Seed/Seed-OSS-36B-Instruct",
        config={"residual_dropout": 0.1, "rope_scaling": {"rope_type": "default"}},
    ),
    "arcee": Published(
        "arcee-ai/AFM-4.5B, whose scaling has both words",
        case=1,
        config={
            "rope_scaling": {
                "factor": 4.0,
                "mscale": 1.0,
                "original_max_position_embeddings": 64,
                "rope_type": "yarn",
                "type": "yarn",
            }
        },
    ),
    "apertus": Published(
        "swiss-ai/Apertus-8B-2509, whose scaling has both words; act_fn's buffers are loaded by "
        "vllm/model_executor/models/apertus.py",
        config={
            "mlp_bias": False,
            "post_norm": False,
            "qk_norm": True,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 32,
                "rope_type": "llama3",
                "type": "llama3",
            },
        },
    ),
    "hunyuan_v1_dense": Published(
        "tencent/Hunyuan-7B-Instruct, with the keys of its mixtures and of images; names as "
        "vllm/model_executor/models/hunyuan_v1.py",
        config={
            "add_classification_head": False,
            "anyres_pooling_size": 2,
            "attention_head_dim": 32,
            "cla_share_factor": 2,
            "class_num": 0,
            "dense_list": [64, 0],
            "eod_token_id": 3,
            "im_start_id": 5,
            "kv_lora_rank": None,
            "mlp_bias": False,
            "norm_type": "rms",
            "num_experts": 1,
            "num_media_embeds": 257,
            "num_shared_expert": 1,
            "org_vocab_size": 500,
            "pool_type": "last",
            "position_embedding_xdrope": False,
            "use_cla": False,
            "use_mixed_mlp_moe": False,
            "use_mla": False,
            "use_qk_norm": True,
            "use_rotary_pos_emb": True,
            "vit_mapping_type": "resampler",
            "vit_norm_type": "fused",
            "vit_token": 64,
        },
        scaling_word="type",
    ),
    "glm": Published(
        "zai-org/glm-4-9b-chat-hf: gate and up fused, queries, keys and values not; the part that "
        "turns is left out (mlx-lm#1698)",
        absent=("layer_types", "partial_rotary_factor"),
    ),
    "helium": Published("kyutai/helium-1-2b"),
    "olmo": Published("allenai/OLMo-7B-0724-hf", config={"attention_dropout": 0.0}),
    "olmo2": Published("allenai/OLMo-2-1124-7B"),
    "olmo3": Published("allenai/Olmo-3-1025-7B", absent=()),
    "ernie4_5": Published(
        "baidu/ERNIE-4.5-0.3B-PT, tied and with lm_head.weight",
        tensors=_with_head("model.embed_tokens.weight"),
    ),
    "glm4": Published("zai-org/GLM-4-9B-0414: gate and up fused, queries, keys and values not"),
    "exaone4": Published(
        "LGAI-EXAONE/EXAONE-4.0-32B", config={"sliding_window_pattern": "LLLG"}, absent=()
    ),
    "cohere": Published(
        "CohereForAI/c4ai-command-r-v01", config={"use_qk_norm": False, "model_max_length": 131072}
    ),
    "cohere2": Published(
        "CohereForAI/c4ai-command-r7b-12-2024",
        config={
            "cache_implementation": "hybrid",
            "layer_switch": 4,
            "order_of_interleaved_layers": "local_attn_first",
            "position_embedding_type": "rope_gptj",
            "rotary_pct": 1.0,
            "sliding_window_pattern": 4,
            "use_embedding_sharing": True,
            "use_gated_activation": True,
            "use_parallel_block": True,
            "use_parallel_embedding": True,
            "use_qk_norm": False,
        },
    ),
    "phi": Published("microsoft/phi-2", config={"embd_pdrop": 0.0, "resid_pdrop": 0.1}),
    "stablelm": Published(
        "stabilityai/stablelm-2-1_6b; inv_freq: skipped by vllm/model_executor/models/stablelm.py",
        tensors=_INV_FREQ,
    ),
    "nemotron": Published(
        "nvidia/Minitron-4B-Base; rope_percent: vllm/transformers_utils/configs/nemotron.py",
        config={"rope_percent": 0.5},
    ),
    "gpt2": Published(
        "openai-community/gpt2: vllm/model_executor/models/gpt2.py adds the prefix; gguf "
        "tensor_mapping.py has h.{bid}.attn.c_attn",
        config={
            **_SUMMARY,
            "n_ctx": 256,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
        tensors=_all(
            _with_masks("transformer.h.{i}.attn", torch.float32), _without("transformer.")
        ),
    ),
    "gptj": Published(
        "EleutherAI/gpt-j-6b; masks: skipped by vllm/model_executor/models/gpt_j.py",
        config={
            **_SUMMARY,
            "rotary": True,
            "scale_attn_weights": True,
            "gradient_checkpointing": False,
        },
        tensors=_with_masks("transformer.h.{i}.attn", torch.bool),
    ),
    "gpt_neo": Published(
        "EleutherAI/gpt-neo-125m, tied and with lm_head.weight",
        config={**_SUMMARY, "gradient_checkpointing": False},
        tensors=_all(
            _with_masks("transformer.h.{i}.attn.attention", torch.uint8),
            _with_head("transformer.wte.weight"),
        ),
    ),
    "bloom": Published(
        "bigscience/bloom, the decoder alone: gguf's tensor_mapping.py has word_embeddings and "
        "h.{bid}.self_attention.query_key_value without a prefix",
        config={
            "attention_softmax_in_fp32": True,
            "masked_softmax_fusion": True,
            "n_embed": 96,
            "n_inner": None,
            "num_attention_heads": 6,
            "offset_alibi": 100,
            "pretraining_tp": 4,
            "seq_length": 2048,
            "skip_bias_add": True,
        },
        absent=("hidden_size", "n_head"),
        tensors=_without("transformer."),
    ),
    "mpt": Published(
        "mosaicml/mpt-7b-instruct, whose modeling_mpt.py transformers took in; names as "
        "vllm/model_executor/models/mpt.py had them",
        config={
            "architectures": ["MPTForCausalLM"],
            "attn_config": {
                "alibi": True,
                "alibi_bias_max": 8,
                "attn_impl": "torch",
                "attn_pdrop": 0,
                "attn_type": "multihead_attention",
                "attn_uses_sequence_id": False,
                "clip_qkv": 3.0,
                "prefix_lm": False,
                "qk_ln": False,
                "softmax_scale": None,
            },
            "auto_map": {
                "AutoConfig": "configuration_mpt.MPTConfig",
                "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM",
            },
            "init_config": {"emb_init_std": None, "init_std": 0.02, "name": "kaiming_normal_"},
            "norm_type": "low_precision_layernorm",
            "tokenizer_name": "EleutherAI/gpt-neox-20b",
            "verbose": 0,
        },
        absent=("layer_norm_epsilon", "tie_word_embeddings"),
    ),
    "falcon": Published(
        "tiiuae/falcon-7b, whose modeling_falcon.py transformers took in; lm_head.weight beside a "
        "tied table, as vllm/model_executor/models/falcon.py loads it",
        config={
            "apply_residual_connection_post_layernorm": False,
            "auto_map": {
                "AutoConfig": "configuration_falcon.FalconConfig",
                "AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM",
            },
        },
        absent=(
            *("activation", "ffn_hidden_size", "max_position_embeddings", "num_kv_heads"),
            *("num_ln_in_parallel_attn", "tie_word_embeddings"),
        ),
        tensors=_with_head("transformer.word_embeddings.weight"),
    ),
    "gpt_neox": Published(
        "EleutherAI/pythia-70m; buffers: skipped by vllm/model_executor/models/gpt_neox.py",
        tensors=_all(
            _with_masks("gpt_neox.layers.{i}.attention", torch.bool),
            _with_frequencies("gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"),
        ),
        theta="rotary_emb_base",
        partial="rotary_pct",
    ),
    "gpt_bigcode": Published(
        "bigcode/starcoder; masks: skipped by vllm/model_executor/models/gpt_bigcode.py",
        config={
            **_SUMMARY,
            "inference_runner": 0,
            "max_batch_size": None,
            "max_sequence_length": None,
            "pad_key_length": True,
            "pre_allocate_kv_cache": False,
            "validate_runner_input": True,
        },
        absent=("num_key_value_heads",),
        tensors=_all(
            _with_masks("transformer.h.{i}.attn", torch.bool),
            _with_head("transformer.wte.weight"),
        ),
    ),
    "opt": Published(
        "facebook/opt-125m; without the prefix, as vllm/model_executor/models/opt.py maps it",
        config={"activation_dropout": 0.0, "prefix": "</s>"},
        tensors=_without("model."),
    ),
    "gpt1": Published(
        "openai-community/openai-gpt: saved from the bare decoder, with its masks",
        config={"n_ctx": 256, "n_special": 0, "predict_special_tokens": True},
        tensors=_all(
            _with_masks("transformer.h.{i}.attn", torch.float32), _without("transformer.")
        ),
    ),
    "ministral": Published("mistralai/Ministral-8B-Instruct-2410, by its own class", absent=()),
    "ministral3": Published("mistralai/Ministral-3-3B-Base-2512's text_config"),
}
