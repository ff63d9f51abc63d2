"""Folders of vision-language models are served as text, and nothing of images is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.memory.kinds import MemoryKind
from tests.execution import stepping
from tests.parity import oracle
from tests.parity.family_checkpoints import BASE, GEMMA4, VOCAB, WINDOW, Case, sharpen
from weights import families
from weights.checkpoint.folder import open_checkpoint
from weights.checkpoint.matching import match
from weights.errors import CheckpointError
from weights.inventory import num_parameters
from weights.presets import find_preset

PROMPT = np.random.default_rng(5).integers(3, VOCAB - 2, size=60).tolist()
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TEXT = {key: value for key, value in BASE.items() if key not in ("pad_token_id",)}
AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [8, 4],
    "output_proj_dims": 48,
}
GEMMA = {**TEXT, "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 1}
FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, float]]] = {
    "gemma3": (
        "Gemma3Config",
        {"text_config": GEMMA, "vision_config": VISION, "mm_tokens_per_image": 4},
        {"image_token_index": VOCAB - 1},
        {"embed_tokens": 0.1},
    ),
    "gemma4": (
        "Gemma4Config",
        {
            "text_config": {**TEXT, **GEMMA4, "global_head_dim": 32},
            "vision_config": {**VISION, "num_key_value_heads": 2, "head_dim": 16},
            "audio_config": AUDIO,
        },
        {"image_token_id": VOCAB - 1, "video_token_id": VOCAB - 2},
        {"embed_tokens": 0.1},
    ),
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": {**TEXT, "model_type": "mistral", "sliding_window": None},
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 16},
        },
        {"image_token_index": VOCAB - 1, "tie_word_embeddings": False},
        {},
    ),
}
MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.3,
}
FOLDERS["mistral3 of ministral3"] = (
    "Mistral3Config",
    {
        **FOLDERS["mistral3"][1],
        "text_config": {
            **TEXT,
            "model_type": "ministral3",
            "head_dim": 16,
            "rope_parameters": MINISTRAL_ROPE,
        },
    },
    *FOLDERS["mistral3"][2:],
)


QWEN_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
QWEN = {**TEXT, "num_key_value_heads": 2, "rope_parameters": MROPE}
QWEN_IDS = {"image_token_id": VOCAB - 1, "video_token_id": VOCAB - 2}
FOLDERS |= {
    "qwen2_vl": (
        "Qwen2VLConfig",
        {
            "text_config": QWEN,
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        },
        QWEN_IDS,
        {},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {"text_config": QWEN, "vision_config": {**QWEN_VISION, "out_hidden_size": 64}},
        QWEN_IDS,
        {},
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {
            "text_config": {
                **QWEN,
                "head_dim": 16,
                "rope_parameters": {**MROPE, "mrope_interleaved": True},
            },
            "vision_config": {
                **QWEN_VISION,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
        },
        QWEN_IDS,
        {"q_norm": 3.0, "k_norm": 3.0},
    ),
}


def write(name: str, folder: Path) -> Any:
    import transformers

    config_class, parts, facts, gains = FOLDERS[name]
    config = getattr(transformers, config_class)(**parts, **facts)
    model = transformers.AutoModelForImageTextToText.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    sharpen(model, Case(config_class, gains=gains), seed=0)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", FOLDERS)
def test_text_is_answered_as_transformers_does_and_images_take_no_bytes(
    name: str, tmp_path: Path
) -> None:
    model = write(name, tmp_path)
    built = stepping.built(tmp_path, max_model_len=256)
    theirs = oracle.logits(model, PROMPT)
    error = (stepping.all_logits(built.runner, PROMPT) - theirs).abs().max() / theirs.abs().max()
    assert float(error) <= 1e-4
    assert built.layout.bytes(MemoryKind.WEIGHTS) == 4 * num_parameters(built.model)
    skipped = {item.name.partition("*")[0]: item.reason for item in built.report.skipped}
    if name == "gemma4":
        parts = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.")
        assert all(any(part in prefix for prefix in skipped) for part in parts)
    elif name.startswith("qwen"):
        assert any("visual." in prefix for prefix in skipped)
    else:
        assert any("vision_tower." in prefix for prefix in skipped)
        assert any("multi_modal_projector." in prefix for prefix in skipped)
    assert len(built.report.skipped) <= 5  # a line a prefix, and the tied unembedding's


def test_both_spellings_of_the_names_are_found(tmp_path: Path) -> None:
    """The hub's files begin with ``language_model.model.``; transformers 5 has it the other way."""
    from safetensors.torch import load_file, save_file

    write("mistral3", tmp_path)
    file = tmp_path / "model.safetensors"
    published = load_file(file)
    assert any(name.startswith("language_model.model.") for name in published)

    def newer(name: str) -> str:
        if name.startswith("language_model."):
            inner = name.removeprefix("language_model.")
            return inner if inner.startswith("lm_head.") else f"model.language_model.{inner[6:]}"
        return f"model.{name}"

    renamed = {newer(name): tensor for name, tensor in published.items()}
    for tensors in (published, renamed):
        save_file(tensors, file, metadata={"format": "pt"})
        checkpoint = open_checkpoint(tmp_path)
        family = families.resolve(checkpoint.config)
        matching = match(checkpoint, family, family.spec(checkpoint.config))
        assert len(matching.skipped) == 2 and not matching.unprefixed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_config": None}, "text_config must be an object"),
        ({"text_config": {"model_type": "mamba"}}, 'text_config.model_type "mamba" is not served'),
        ({"rope_sections": [1]}, "rope_sections"),
    ],
    ids=["no text part", "another text part", "an unknown fact"],
)
def test_what_is_not_served_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    write("gemma3", tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text()), **change}
    with pytest.raises(CheckpointError, match=words):
        families.resolve(config).spec(config)


def test_the_outer_file_says_what_the_inner_one_leaves_out() -> None:
    """Gemma 3's 4B as published: sizes are the config class's, ids and dtype the outer file's."""
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    spec = families.resolve(config).spec(config)
    preset = find_preset("gemma-3-4b").spec
    assert num_parameters(spec) == num_parameters(preset)
    assert (spec.windows, spec.attention) == (preset.windows, preset.attention)
    assert spec.eos_token_ids == (1, 106) and spec.parameter_dtype == "bf16"
    assert spec.rope.factor == 8.0 and spec.local_rope is not None
    assert spec.local_rope.factor == 1.0 and spec.local_rope.theta == 10000.0


def test_text_and_image_facts_side_by_side_are_told_apart() -> None:
    """Qwen 2.5 VL's 7B as published: no text_config, and a rotary embedding of images."""
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {"depth": 32, "hidden_size": 1280, "model_type": "qwen2_5_vl"},
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152064,
    }
    spec = families.resolve(config).spec(config)
    assert num_parameters(spec) == num_parameters(find_preset("qwen2.5-7b").spec) == 7_615_616_512
    assert (spec.rope.theta, spec.rope.dim, spec.windows) == (1e6, 128, ())
    assert spec.norm.epsilon == 1e-6 and spec.eos_token_ids == (151645,)
    for key, value, words in (
        ("logit_scale", 2.0, "logit_scale is 2.0"),
        ("rope_scaling", {"type": "mrope", "mscale_own": 2}, "mscale_own"),
    ):
        wrong = {**config, key: value}
        with pytest.raises(CheckpointError, match=words):
            families.resolve(wrong).spec(wrong)
