"""What is refused by name, and why: kinds of models that the families here do not compute.

A config.json's model_type says which it is. The reasons are what a message ends with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights.config.keys import words

_MIXTURE = "it is a mixture of experts, which is not served yet"
_LATENT = "it has latent attention and a mixture of experts, which are not served yet"
_STATE = "its layers keep a recurrent state that is no key or value, which is not served"
_CHUNKED = "it has chunked attention and a mixture of experts, which are not served"
_ENCODER = "it is an encoder: it turns texts into vectors, and cannot continue one"
_ENCODER_DECODER = "it is an encoder-decoder; only decoders are served"
_VISION = "it reads images, and its text part is not of a family that is served"
_FIRST_FALCON = (
    "it is Falcon in the words of its first code, which leave a part to that code; take the "
    "folder's present revision, whose model_type is falcon"
)
_SPEECH = "it reads or makes sound; only text models are served"

_KINDS: Mapping[str, str] = {
    _MIXTURE: """
        mixtral qwen2_moe qwen3_moe granitemoe granitemoeshared olmoe phimoe glm4_moe ernie4_5_moe
        hunyuan_v1_moe gpt_oss dbrx jetmoe minimax flex_olmo dots1 afmoe
        """,
    _LATENT: """
        deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 glm_moe_dsa longcat_flash minicpm3
        """,
    _STATE: """
        mamba mamba2 falcon_mamba jamba bamba zamba zamba2 nemotron_h granitemoehybrid lfm2 lfm2_moe
        qwen3_next qwen3_5 qwen3_5_moe kimi_linear rwkv recurrent_gemma falcon_h1 xlstm olmo_hybrid
        """,
    _CHUNKED: "llama4 llama4_text",
    _ENCODER: """
        bert roberta xlm-roberta distilbert electra mpnet albert deberta deberta-v2 camembert
        nomic_bert modernbert eurobert ernie convbert megatron-bert funnel
        """,
    _ENCODER_DECODER: "t5 mt5 umt5 bart mbart marian pegasus m2m_100 led longt5 t5gemma",
    _VISION: """
        vit clip siglip siglip2 dinov2 blip blip-2 llava_next idefics3 smolvlm qwen3_vl_moe
        mllama paligemma internvl phi4_multimodal
        """,
    _FIRST_FALCON: "RefinedWeb RefinedWebModel",
    _SPEECH: "whisper wav2vec2 hubert bark musicgen seamless_m4t speecht5 voxtral qwen2_audio",
}
_REASONS = {name: reason for reason, names in _KINDS.items() for name in words(names)}

# Heads of transformers' classes that give a decoder another output than the next token.
_HEADS = {
    "ForSequenceClassification": "its head scores a whole text (a classifier or a reward model)",
    "ForTokenClassification": "its head labels each token",
    "ForQuestionAnswering": "its head marks an answer within a text",
    "ForMultipleChoice": "its head chooses among texts",
    "ForMaskedLM": "it is an encoder that fills in masked tokens",
    "ForRewardModeling": "its head scores a whole text",
}


def reason_not_served(config: Mapping[str, Any], architecture: object) -> str | None:
    """Why a model of such a config.json is not served; None where nothing is known of it."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _REASONS:
        return _REASONS[model_type]
    if not isinstance(architecture, str):
        return None
    for head, reason in _HEADS.items():
        if architecture.endswith(head):
            return f"{reason}, and cannot continue a text"
    return None
