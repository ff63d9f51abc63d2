"""A config.json, or a file beside it, that is wrong in itself."""

from __future__ import annotations

from pathlib import Path

from tests.weights.mutations import Mutations

BAD_CONFIGS = Mutations()

BAD_CONFIGS.config("zero_heads", "num_attention_heads", "0", num_attention_heads=0)
BAD_CONFIGS.config("hidden_not_divisible", "hidden_size", "multiple", hidden_size=33, head_dim=...)
BAD_CONFIGS.config("kv_heads_do_not_divide", "num_key_value_heads", num_key_value_heads=3)
BAD_CONFIGS.config("negative_layers", "num_hidden_layers", "-2", num_hidden_layers=-2)
BAD_CONFIGS.config("absurd_layers", "num_hidden_layers", num_hidden_layers=10**9)
BAD_CONFIGS.config("more_layers_than_any", "num_hidden_layers", "1..4096", num_hidden_layers=4097)
BAD_CONFIGS.config("layers_as_string", "num_hidden_layers", "whole number", num_hidden_layers="2")
BAD_CONFIGS.config("layers_as_fraction", "num_hidden_layers", "2.5", num_hidden_layers=2.5)
BAD_CONFIGS.config("vocabulary_is_true", "vocab_size", "true", vocab_size=True)
BAD_CONFIGS.config("hidden_missing", "hidden_size", "missing", hidden_size=...)
BAD_CONFIGS.config("hidden_null", "hidden_size", "null", hidden_size=None)
BAD_CONFIGS.config("hidden_huge", "hidden_size", hidden_size=10**18)
BAD_CONFIGS.config("integer_of_many_digits", "hidden_size", hidden_size=10**4000)
BAD_CONFIGS.config("odd_head_dim", "head_dim", "even", head_dim=7)
BAD_CONFIGS.config("zero_epsilon", "rms_norm_eps", rms_norm_eps=0.0)
BAD_CONFIGS.config("epsilon_as_list", "rms_norm_eps", "number", rms_norm_eps=[1e-6])
BAD_CONFIGS.config(
    "unknown_architecture", "MixtralForCausalLM", architectures=["MixtralForCausalLM"]
)
BAD_CONFIGS.config("architectures_empty", "architectures", architectures=[])
BAD_CONFIGS.config("contradictory_model_type", "model_type", "mistral", model_type="mistral")
BAD_CONFIGS.config("unknown_activation", "hidden_act", "mish", hidden_act="mish")
BAD_CONFIGS.config("unknown_rope", "spiral", rope_scaling={"rope_type": "spiral", "factor": 2.0})
BAD_CONFIGS.config("rope_without_factor", "factor", "missing", rope_scaling={"type": "linear"})
BAD_CONFIGS.config("rope_shrinks", "factor", "0.5", rope_scaling={"type": "linear", "factor": 0.5})
BAD_CONFIGS.config("rope_is_list", "rope_scaling", "object", rope_scaling=[2.0])
BAD_CONFIGS.config(
    "rope_key_unknown",
    "rope_scaling.shorter_factor",
    rope_scaling={"type": "linear", "factor": 2.0, "shorter_factor": [1.0]},
)
BAD_CONFIGS.config(
    "longrope_without_factors",
    "rope_scaling.short_factor",
    "must be a list of 4 numbers",
    rope_scaling={"rope_type": "longrope", "factor": 2.0},
)
BAD_CONFIGS.config("rope_theta_negative", "rope_theta", rope_theta=-10000.0)
BAD_CONFIGS.config(
    "quantised", "quantization_config", "gptq", quantization_config={"quant_method": "gptq"}
)
BAD_CONFIGS.config("sliced_products", "pretraining_tp", pretraining_tp="two")
BAD_CONFIGS.config("sliding_window", "sliding_window", sliding_window=128)
BAD_CONFIGS.config("unknown_multiplier", "residual_multiplier", residual_multiplier=0.22)
BAD_CONFIGS.config("custom_code", "auto_map", auto_map={"AutoModel": "modeling_x.Model"})
BAD_CONFIGS.config(
    "known_code_of_another_architecture",
    "auto_map",
    auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
)
BAD_CONFIGS.config("dtype_unserved", "dtype", "float8_e4m3fn", torch_dtype="float8_e4m3fn")
BAD_CONFIGS.config("eos_outside_vocabulary", "eos_token_id", "300", eos_token_id=300)
BAD_CONFIGS.config("eos_as_word", "eos_token_id", eos_token_id="</s>")
BAD_CONFIGS.config("tie_as_string", "tie_word_embeddings", tie_word_embeddings="false")
BAD_CONFIGS.written("config.json", "config_not_json", "{'hidden_size': 32}", "not valid JSON")
BAD_CONFIGS.written("config.json", "config_not_utf8", b'{"model_type": "\xff\xfe"}', "UTF-8")
BAD_CONFIGS.written("config.json", "config_is_a_list", "[1, 2]", "object")
BAD_CONFIGS.written(
    "config.json",
    "config_duplicate_key",
    '{"hidden_size": 32, "hidden_size": 64}',
    "duplicate",
    "hidden_size",
)
BAD_CONFIGS.written("config.json", "config_too_deep", '{"a":' * 200_000, "deep")
BAD_CONFIGS.written("config.json", "config_enormous", '{"a": "' + "x" * (5 << 20) + '"}', "bytes")
BAD_CONFIGS.written("generation_config.json", "generation_config_not_json", "eos", "not valid JSON")
BAD_CONFIGS.written("adapter_config.json", "adapter_folder", '{"peft_type": "LORA"}', "adapter")
BAD_CONFIGS.written("model_index.json", "diffusion_folder", "{}", "diffusion pipeline")


@BAD_CONFIGS.mutation("config.json", "missing")
def config_missing(folder: Path) -> None:
    (folder / "config.json").unlink()


@BAD_CONFIGS.mutation("config.json", "NaN")
def config_nan(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("1e-06", "NaN"))


@BAD_CONFIGS.mutation("config.json", "finite")
def config_overflowing_number(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("1e-06", "1e999"))


@BAD_CONFIGS.mutation("config.json", "outside")
def config_links_outside(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")
