"""Ways in which a checkpoint folder can be wrong, each as a function that spoils a good folder.

``MUTATIONS`` is used here and by the end-to-end test of the command line. A mutation says which
good folder it starts from and which words the refusal must hold.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.weights.folders import (
    INDEX,
    OTHER_SHARD,
    SHARD,
    WEIGHTS,
    Header,
    append_tensor,
    drop_last_tensor,
    edit_config,
    edit_header,
    edit_json,
    read_parts,
    rename_tensors,
    write_parts,
)

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@dataclass(frozen=True, slots=True)
class Mutation:
    """``apply`` spoils the folder; every one of ``words`` must stand in the message."""

    name: str
    apply: Callable[[Path], None]
    words: tuple[str, ...]
    sharded: bool = False
    tied: bool = False


MUTATIONS: dict[str, Mutation] = {}


def mutation(
    *words: str, sharded: bool = False, tied: bool = False
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def register(apply: Callable[[Path], None]) -> Callable[[Path], None]:
        MUTATIONS[apply.__name__] = Mutation(apply.__name__, apply, words, sharded, tied)
        return apply

    return register


def _config(name: str, *words: str, **changes: object) -> None:
    """A mutation that sets keys of config.json."""

    def apply(folder: Path) -> None:
        edit_config(folder, **changes)

    MUTATIONS[name] = Mutation(name, apply, ("config.json", *words))


def _entry(name: str, *words: str, tensor: str = Q_PROJ, **changes: object) -> None:
    """A mutation that sets fields of one tensor's entry in the header."""

    def apply(folder: Path) -> None:
        edit_header(folder, lambda header: header[tensor].update(changes))

    MUTATIONS[name] = Mutation(name, apply, (WEIGHTS, tensor, *words))


# --- config.json -------------------------------------------------------------------------------

_config("zero_heads", "num_attention_heads", "0", num_attention_heads=0)
_config("hidden_not_divisible", "hidden_size", "multiple", hidden_size=33, head_dim=...)
_config("kv_heads_do_not_divide", "num_key_value_heads", num_key_value_heads=3)
_config("negative_layers", "num_hidden_layers", "-2", num_hidden_layers=-2)
_config("absurd_layers", "num_hidden_layers", num_hidden_layers=10**9)
_config("layers_as_string", "num_hidden_layers", "whole number", num_hidden_layers="2")
_config("layers_as_fraction", "num_hidden_layers", "2.5", num_hidden_layers=2.5)
_config("vocabulary_is_true", "vocab_size", "true", vocab_size=True)
_config("hidden_missing", "hidden_size", "missing", hidden_size=...)
_config("hidden_null", "hidden_size", "null", hidden_size=None)
_config("hidden_huge", "hidden_size", hidden_size=10**18)
_config("integer_of_many_digits", "hidden_size", hidden_size=10**4000)
_config("odd_head_dim", "head_dim", "even", head_dim=7)
_config("zero_epsilon", "rms_norm_eps", rms_norm_eps=0.0)
_config("epsilon_as_list", "rms_norm_eps", "number", rms_norm_eps=[1e-6])
_config("unknown_architecture", "MixtralForCausalLM", architectures=["MixtralForCausalLM"])
_config("architectures_empty", "architectures", architectures=[])
_config("contradictory_model_type", "model_type", "mistral", model_type="mistral")
_config("unknown_activation", "hidden_act", "mish", hidden_act="mish")
_config("unknown_rope", "longrope", rope_scaling={"rope_type": "longrope", "factor": 2.0})
_config("rope_without_factor", "factor", "missing", rope_scaling={"type": "linear"})
_config("rope_shrinks", "factor", "0.5", rope_scaling={"type": "linear", "factor": 0.5})
_config("rope_is_list", "rope_scaling", "object", rope_scaling=[2.0])
_config(
    "rope_key_unknown",
    "rope_scaling.short_factor",
    rope_scaling={"type": "linear", "factor": 2.0, "short_factor": [1.0]},
)
_config("rope_theta_negative", "rope_theta", rope_theta=-10000.0)
_config("quantised", "quantization_config", "gptq", quantization_config={"quant_method": "gptq"})
_config("sliced_products", "pretraining_tp", pretraining_tp=2)
_config("sliding_window", "sliding_window", sliding_window=128)
_config("unknown_multiplier", "residual_multiplier", residual_multiplier=0.22)
_config("custom_code", "auto_map", auto_map={"AutoModel": "modeling_x.Model"})
_config("dtype_unserved", "dtype", "float8_e4m3fn", torch_dtype="float8_e4m3fn")
_config("eos_outside_vocabulary", "eos_token_id", "300", eos_token_id=300)
_config("eos_as_word", "eos_token_id", eos_token_id="</s>")
_config("tie_as_string", "tie_word_embeddings", tie_word_embeddings="false")


@mutation("config.json", "missing")
def config_missing(folder: Path) -> None:
    (folder / "config.json").unlink()


@mutation("config.json", "not JSON")
def config_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{'hidden_size': 32}")


@mutation("config.json", "UTF-8")
def config_not_utf8(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"model_type": "\xff\xfe"}')


@mutation("config.json", "object")
def config_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


@mutation("config.json", "duplicate", "hidden_size")
def config_duplicate_key(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": 32, "hidden_size": 64}')


@mutation("config.json", "NaN")
def config_nan(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("1e-06", "NaN"))


@mutation("config.json", "finite")
def config_overflowing_number(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("1e-06", "1e999"))


@mutation("config.json", "deep")
def config_too_deep(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 200_000)


@mutation("config.json", "bytes")
def config_enormous(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": "' + "x" * (5 << 20) + '"}')


@mutation("config.json", "outside")
def config_links_outside(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")


@mutation("generation_config.json", "not JSON")
def generation_config_not_json(folder: Path) -> None:
    (folder / "generation_config.json").write_text("eos")


@mutation("adapter_config.json", "adapter")
def adapter_folder(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


# --- which files there are ---------------------------------------------------------------------


@mutation("pytorch_model.bin", "convert to safetensors")
def pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


@mutation("consolidated.00.pth", "convert to safetensors")
def pth_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "consolidated.00.pth")


@mutation("model.gguf", "convert to safetensors")
def gguf_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model.gguf")


@mutation(WEIGHTS, "missing")
def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


@mutation(WEIGHTS, INDEX, sharded=True)
def single_beside_index(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder / WEIGHTS)


@mutation(WEIGHTS, "cannot be opened")
def link_to_itself(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


@mutation(WEIGHTS, "regular file")
def weights_are_a_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@mutation(SHARD, "regular file", sharded=True)
def shard_is_a_folder(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()


# --- the header --------------------------------------------------------------------------------


def _set_length(folder: Path, length: int) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + raw[8:])


@mutation(WEIGHTS, "few")
def file_empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


@mutation(WEIGHTS, "few")
def file_of_four_bytes(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 4)


@mutation(WEIGHTS, "header length")
def header_length_absurd(folder: Path) -> None:
    _set_length(folder, 1 << 62)


@mutation(WEIGHTS, "header length")
def header_length_minus_one(folder: Path) -> None:
    _set_length(folder, (1 << 64) - 1)


@mutation(WEIGHTS, "header length", "at most 100000000")
def header_length_beyond_the_limit(folder: Path) -> None:
    _set_length(folder, 150_000_000)
    os.truncate(folder / WEIGHTS, 200_000_000)  # a hole: it takes no room on the disk


@mutation(WEIGHTS, "header length")
def header_length_beyond_the_file(folder: Path) -> None:
    _set_length(folder, (folder / WEIGHTS).stat().st_size)


@mutation(WEIGHTS, "not JSON")
def header_length_short(folder: Path) -> None:
    _set_length(folder, 40)


@mutation(WEIGHTS, "not JSON")
def header_length_zero(folder: Path) -> None:
    _set_length(folder, 0)


@mutation(WEIGHTS, "not JSON")
def header_not_json(folder: Path) -> None:
    write_parts(folder / WEIGHTS, b"{tensors: 3}", b"")


@mutation(WEIGHTS, "UTF-8")
def header_not_utf8(folder: Path) -> None:
    write_parts(folder / WEIGHTS, b'{"\xc3\x28": 1}', b"")


@mutation(WEIGHTS, "deep")
def header_too_deep(folder: Path) -> None:
    write_parts(folder / WEIGHTS, b'{"a":' * 500_000, b"")


@mutation(WEIGHTS, "header")
def header_is_a_list(folder: Path) -> None:
    write_parts(folder / WEIGHTS, b"[]", b"")


@mutation(WEIGHTS, "no tensor")
def header_without_tensors(folder: Path) -> None:
    write_parts(folder / WEIGHTS, {}, b"")


@mutation(WEIGHTS, "duplicate", NORM)
def tensor_twice_in_one_header(folder: Path) -> None:
    _, data = read_parts(folder / WEIGHTS)
    entry = b'"model.norm.weight": {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}'
    write_parts(folder / WEIGHTS, b"{" + entry + b", " + entry + b"}", data[:128])


@mutation(WEIGHTS, "__metadata__")
def metadata_of_numbers(folder: Path) -> None:
    edit_header(folder, lambda header: header.update(__metadata__={"format": 1}))


@mutation(WEIGHTS, Q_PROJ, "object")
def tensor_is_a_number(folder: Path) -> None:
    edit_header(folder, lambda header: header.update({Q_PROJ: 3}))


@mutation(WEIGHTS, "overlap", NORM)
def tensors_overlap(folder: Path) -> None:
    def change(header: Header) -> None:
        begin = header[Q_PROJ]["data_offsets"][0]
        header[NORM]["data_offsets"] = [begin, begin + 128]

    edit_header(folder, change)


@mutation(WEIGHTS, "no tensor", NORM)
def gap_between_tensors(folder: Path) -> None:
    header, data = read_parts(folder / WEIGHTS)
    begin = header[NORM]["data_offsets"][0]
    for entry in header.values():
        offsets = entry.get("data_offsets")
        if offsets and offsets[0] >= begin:
            entry["data_offsets"] = [offset + 16 for offset in offsets]
    write_parts(folder / WEIGHTS, header, data[:begin] + bytes(16) + data[begin:])


@mutation(WEIGHTS, "no tensor")
def bytes_after_the_last_tensor(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as stream:
        stream.write(bytes(32))


@mutation(WEIGHTS, "lm_head.weight", "cut off")
def data_cut_off(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 100)


_entry("offsets_negative", "data_offsets", data_offsets=[-4096, 0])
_entry("offsets_reversed", "data_offsets", data_offsets=[4096, 0])
_entry("offsets_of_three", "data_offsets", data_offsets=[0, 1, 2])
_entry("offsets_as_words", "data_offsets", data_offsets=["0", "4096"])
_entry("offsets_beyond_the_file", "cut off", data_offsets=[1 << 40, (1 << 40) + 4096])
_entry("shape_and_bytes_disagree", "4096", "3968", shape=[31, 32])
_entry("shape_missing", "shape", shape=None)
_entry("dimension_negative", "shape", "-32", shape=[-32, -32])
_entry("dimension_huge", "shape", shape=[1 << 60, 32])
_entry("dimensions_overflow", "bytes", shape=[1 << 40, 1 << 40])
_entry("dimension_fraction", "shape", shape=[32.0, 32])
_entry("dimensions_too_many", "shape", shape=[1] * 17)
_entry("dtype_unknown", "dtype", "F31", dtype="F31")
_entry("dtype_missing", "dtype", dtype=None)
_entry("dtype_of_integers", "I32", dtype="I32")
_entry("dtype_of_fewer_bytes", "F16", dtype="F16")


# --- the tensors against config.json -----------------------------------------------------------

_entry("shape_of_another_model", "[16, 64]", "[32, 32]", shape=[16, 64])
MUTATIONS["vocabulary_of_another_model"] = Mutation(
    "vocabulary_of_another_model",
    lambda folder: edit_config(folder, vocab_size=301),
    (WEIGHTS, "model.embed_tokens.weight", "301"),
)


@mutation(WEIGHTS, "missing", "model.layers.2.")
def layer_missing(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3)


@mutation(WEIGHTS, "unexpected", "model.layers.1.")
def layer_too_many(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1)


@mutation(WEIGHTS, "missing", "lm_head.weight")
def tensor_missing(folder: Path) -> None:
    if drop_last_tensor(folder) != "lm_head.weight":
        raise ValueError("the synthetic folder ends in another tensor now")


@mutation(WEIGHTS, "unexpected", "model.layers.0.self_attn.q_norm.weight")
def tensor_unexpected(folder: Path) -> None:
    append_tensor(folder, "model.layers.0.self_attn.q_norm.weight", bytes(32), [8])


@mutation(WEIGHTS, "unexpected", "model.layers.0.self_attn.q_proj.bias")
def bias_that_the_config_denies(folder: Path) -> None:
    append_tensor(folder, "model.layers.0.self_attn.q_proj.bias", bytes(128), [32])


@mutation(WEIGHTS, "missing", "model.norm.weight", "unexpected", "model.nrom.weight")
def tensor_misspelt(folder: Path) -> None:
    rename_tensors(folder, lambda name: name.replace("model.norm", "model.nrom"))


@mutation(WEIGHTS, "'norm.weight'", "same parameter")
def tensor_with_and_without_prefix(folder: Path) -> None:
    append_tensor(folder, "norm.weight", bytes(128), [32])


@mutation(WEIGHTS, "lm_head.weight", "tie_word_embeddings", tied=True)
def tied_copy_differs(folder: Path) -> None:
    append_tensor(folder, "lm_head.weight", bytes(300 * 32 * 4), [300, 32])


@mutation(WEIGHTS, "lm_head.weight", "tie_word_embeddings", tied=True)
def tied_copy_of_another_shape(folder: Path) -> None:
    append_tensor(folder, "lm_head.weight", bytes(299 * 32 * 4), [299, 32])


# --- the index and its shards ------------------------------------------------------------------


def _point(folder: Path, file: str) -> None:
    """Makes the index say that one tensor lies in ``file``."""
    edit_json(folder, INDEX, lambda index: index["weight_map"].update({Q_PROJ: file}))


@mutation(OTHER_SHARD, "missing", sharded=True)
def shard_missing(folder: Path) -> None:
    (folder / OTHER_SHARD).unlink()


@mutation(INDEX, Q_PROJ, "outside", sharded=True)
def index_points_above(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder.parent / "above.safetensors")
    _point(folder, "../above.safetensors")


@mutation(INDEX, Q_PROJ, "outside", sharded=True)
def index_points_to_an_absolute_path(folder: Path) -> None:
    _point(folder, "/etc/model.safetensors")


@mutation(INDEX, Q_PROJ, "outside", sharded=True)
def index_points_into_a_subfolder(folder: Path) -> None:
    _point(folder, "sub/model.safetensors")


@mutation(SHARD, "outside", sharded=True)
def shard_links_outside(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / SHARD).rename(outside)
    (folder / SHARD).symlink_to(outside)


@mutation(INDEX, Q_PROJ, sharded=True)
def index_names_a_pickle(folder: Path) -> None:
    _point(folder, "pytorch_model-00001-of-00002.bin")


@mutation(INDEX, Q_PROJ, sharded=True)
def index_points_to_a_number(folder: Path) -> None:
    edit_json(folder, INDEX, lambda index: index["weight_map"].update({Q_PROJ: 1}))


@mutation(INDEX, "model.ghost.weight", sharded=True)
def index_names_a_tensor_that_the_shard_lacks(folder: Path) -> None:
    edit_json(
        folder, INDEX, lambda index: index["weight_map"].update({"model.ghost.weight": SHARD})
    )


@mutation(INDEX, Q_PROJ, sharded=True)
def shard_holds_a_tensor_that_the_index_lacks(folder: Path) -> None:
    edit_json(folder, INDEX, lambda index: index["weight_map"].pop(Q_PROJ))


@mutation("also in", "model.norm.weight", sharded=True)
def tensor_in_two_shards(folder: Path) -> None:
    for file in (SHARD, OTHER_SHARD):
        header, _ = read_parts(folder / file)
        if NORM not in header:
            append_tensor(folder, NORM, bytes(128), [32], file=file)
            return


@mutation(INDEX, "not JSON", sharded=True)
def index_not_json(folder: Path) -> None:
    (folder / INDEX).write_text("weight_map")


@mutation(INDEX, "weight_map", sharded=True)
def index_without_a_map(folder: Path) -> None:
    (folder / INDEX).write_text('{"metadata": {}}')


@mutation(INDEX, "duplicate", Q_PROJ, sharded=True)
def index_names_a_tensor_twice(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace(f'"{Q_PROJ}"', f'"{Q_PROJ}": "x", "{Q_PROJ}"'))
