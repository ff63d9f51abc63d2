"""Folders of vision-language models, served as text.

Their ``text_config`` is a family's config.json, and their text tensors lie below another prefix.
What the image part adds is skipped by name. Qwen's first files have no ``text_config``: facts of
both parts stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weights.config.facts import CONFIG_FILE, ConfigReader
from weights.config.family import Family
from weights.config.keys import words
from weights.errors import CheckpointError
from weights.spec import ModelSpec

# As published, and as transformers 5 saves them.
_RENAMES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
_REASON = "of the image or sound part, which is not served"
_SKIPPED = {
    prefix: _REASON
    for name in (
        *("vision_tower", "multi_modal_projector", "visual", "audio_tower"),
        *("embed_vision", "embed_audio"),
    )
    for prefix in (f"{name}.", f"model.{name}.")
}
# Facts of images and sound alone: how many tokens one has, which ids stand for it, how it is
# projected.
_IMAGE_KEYS = words(
    """
    vision_config image_token_index image_token_id mm_tokens_per_image boi_token_index
    eoi_token_index spatial_merge_size multimodal_projector_bias projector_hidden_act
    vision_feature_layer vision_feature_select_strategy image_seq_length video_token_id
    vision_token_id vision_start_token_id vision_end_token_id audio_config audio_token_id
    boi_token_id eoi_token_id boa_token_id eoa_token_id eoa_token_index
    vision_soft_tokens_per_image
    """
)
# How the channels that turn are shared out over time, height and width. Positions of text are the
# same in all three, so that it means nothing here (arXiv 2409.12191, section 2.1).
_SHARED_OUT = ("mrope_section", "mrope_interleaved")
# What the outer file may say in place of the inner one.
_SHARED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "tie_word_embeddings")


@dataclass(frozen=True, slots=True)
class Wrapper:
    """An architecture around a text model. ``text_type`` is the text part's model_type where the
    file names none, or names ``own_type``; ``defaults`` are facts that its published files leave
    out. ``flat`` files may have the text part's facts beside the image part's."""

    architecture: str
    model_type: str
    text_type: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    own_type: str | None = None
    flat: bool = False


_QWEN2 = {"rope_theta": 1000000.0, "rms_norm_eps": 1e-5}
WRAPPERS = (
    Wrapper(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        "gemma3_text",
        {"vocab_size": 262208, "num_attention_heads": 8},
    ),
    Wrapper("Gemma4ForConditionalGeneration", "gemma4", "gemma4_text"),
    Wrapper("Mistral3ForConditionalGeneration", "mistral3", "mistral"),
    Wrapper("LlavaForConditionalGeneration", "llava", "llama"),
    Wrapper(
        "Qwen2VLForConditionalGeneration",
        "qwen2_vl",
        "qwen2",
        _QWEN2,
        own_type="qwen2_vl_text",
        flat=True,
    ),
    Wrapper(
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_vl",
        "qwen2",
        _QWEN2,
        own_type="qwen2_5_vl_text",
        flat=True,
    ),
    Wrapper(
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
        "qwen3",
        {"rope_theta": 500000.0},
        own_type="qwen3_vl_text",
    ),
)


def text_family(config: Mapping[str, Any], families: Iterable[Family]) -> Family | None:
    """The text family of a vision-language folder, reading that folder's config.json and names;
    None for any other folder. Raises CheckpointError where its text part is not served."""
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    wrapper = next((one for one in WRAPPERS if one.architecture in names), None)
    if wrapper is None:
        return None
    inner = config.get("text_config")
    if inner is None and wrapper.flat:
        inner = {}
    if not isinstance(inner, dict):
        raise CheckpointError(f"{CONFIG_FILE}: text_config must be an object: it is what is served")
    model_type = inner.get("model_type", wrapper.text_type)
    if model_type == wrapper.own_type:
        model_type = wrapper.text_type
    served = {family.model_type: family for family in families}
    if not isinstance(model_type, str) or model_type not in served:
        raise CheckpointError(
            f'{CONFIG_FILE}: text_config.model_type "{str(model_type)[:80]}" is not served; '
            f"served families: {', '.join(family.name for family in served.values())}"
        )
    return _wrapped(wrapper, served[model_type])


def _wrapped(wrapper: Wrapper, family: Family) -> Family:
    def read(facts: ConfigReader) -> ModelSpec:
        inner = facts.raw("text_config")
        if inner is None:
            own, where = facts.rest(_IMAGE_KEYS), ""
        else:
            outer = {key: facts.raw(key) for key in _SHARED}
            own, where = _present(outer) | _present(inner), "text_config."
        text = ConfigReader(_of_text(own, wrapper.defaults), family.architecture, where)
        spec = family.read(text)
        text.finish(family.harmless)
        return replace(spec, architecture=wrapper.architecture)

    return replace(
        family,
        architecture=wrapper.architecture,
        other_names=(),
        model_type=wrapper.model_type,
        harmless=family.harmless | _IMAGE_KEYS,
        read=read,
        renames=_RENAMES,
        skipped_prefixes=_SKIPPED,
    )


def _present(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value is not None}


def _of_text(facts: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``facts``, and ``defaults`` where they are silent, with one position a token."""
    result = {**defaults, **facts}
    for key in ("rope_scaling", "rope_parameters"):
        rope = result.get(key)
        if isinstance(rope, dict):
            kept = {name: value for name, value in rope.items() if name not in _SHARED_OUT}
            for name in ("type", "rope_type"):
                if kept.get(name) == "mrope":
                    kept[name] = "default"
            result[key] = kept
            if "rope_theta" in kept and "rope_theta" not in facts:
                result.pop("rope_theta", None)
    return result
