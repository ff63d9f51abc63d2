"""Folders of vision-language models, served as text.

Their ``text_config`` is a family's config.json, and their text tensors lie below another prefix.
What the image part adds is skipped by name.
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
_REASON = "of the image part, which is not served"
_SKIPPED = {
    prefix: _REASON
    for name in ("vision_tower", "multi_modal_projector")
    for prefix in (f"{name}.", f"model.{name}.")
}
# Facts of images alone: how many tokens one has, which ids stand for it, how it is projected.
_IMAGE_KEYS = words(
    """
    vision_config image_token_index image_token_id mm_tokens_per_image boi_token_index
    eoi_token_index spatial_merge_size multimodal_projector_bias projector_hidden_act
    vision_feature_layer vision_feature_select_strategy image_seq_length
    """
)
# What the outer file may say in place of the inner one.
_SHARED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "tie_word_embeddings")


@dataclass(frozen=True, slots=True)
class Wrapper:
    """An architecture around a text model. ``text_type`` is the text part's model_type where the
    file names none, ``defaults`` are facts that its published files leave out."""

    architecture: str
    model_type: str
    text_type: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


WRAPPERS = (
    Wrapper(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        "gemma3_text",
        {"vocab_size": 262208, "num_attention_heads": 8},
    ),
    Wrapper("Mistral3ForConditionalGeneration", "mistral3", "mistral"),
    Wrapper("LlavaForConditionalGeneration", "llava", "llama"),
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
    if not isinstance(inner, dict):
        raise CheckpointError(f"{CONFIG_FILE}: text_config must be an object: it is what is served")
    model_type = inner.get("model_type", wrapper.text_type)
    served = {family.model_type: family for family in families}
    if not isinstance(model_type, str) or model_type not in served:
        raise CheckpointError(
            f'{CONFIG_FILE}: text_config.model_type "{str(model_type)[:80]}" is not served; '
            f"served families: {', '.join(family.name for family in served.values())}"
        )
    return _wrapped(wrapper, served[model_type])


def _wrapped(wrapper: Wrapper, family: Family) -> Family:
    def read(facts: ConfigReader) -> ModelSpec:
        inner, outer = facts.raw("text_config"), {key: facts.raw(key) for key in _SHARED}
        given = {key: value for key, value in outer.items() if value is not None}
        own = {key: value for key, value in inner.items() if value is not None}
        text = ConfigReader(
            {**wrapper.defaults, **given, **own}, family.architecture, "text_config."
        )
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
