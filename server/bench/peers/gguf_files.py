"""A checkpoint folder as a GGUF file: Llama's and GPT-2's tensors under that format's names.

The writer is the ``gguf`` package that llama.cpp's sources carry, so that both are of one version.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from weights.checkpoint.folder import open_checkpoint
from weights.families import resolve
from weights.spec import ModelSpec

# What a format's matrices are written as; vectors, and the positions' table, stay float32.
FORMATS = {"f32": "F32", "bf16": "BF16", "f16": "F16", "int8": "Q8_0"}
_FILE_TYPES = {
    "f32": "ALL_F32",
    "bf16": "MOSTLY_BF16",
    "f16": "MOSTLY_F16",
    "int8": "MOSTLY_Q8_0",
}
_NORMAL, _CONTROL = 1, 3  # kinds of tokens in a GGUF vocabulary

_LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2 = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_NAMES = {"llama": _LLAMA, "gpt2": _GPT2}


def write_gguf(folder: Path, path: Path, format: str, package: Path) -> None:
    """Writes the checkpoint of ``folder`` to ``path``.

    Args:
        format: one of FORMATS.
        package: the folder that holds the ``gguf`` package.

    Raises ValueError for a family or a format that is not known here.
    """
    gguf = _gguf(package)
    checkpoint = open_checkpoint(folder)
    spec = resolve(checkpoint.config).spec(checkpoint.config)
    if spec.family not in _NAMES or format not in FORMATS:
        raise ValueError(f"no GGUF file is written of {spec.family} in {format}")
    writer = gguf.GGUFWriter(path, spec.family)
    _describe(writer, spec)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[format]])
    _vocabulary(writer, folder, spec)
    wanted = gguf.GGMLQuantizationType[FORMATS[format]]
    for name, tensor in _tensors(folder, checkpoint.file_sizes, spec):
        plain = tensor.dim() == 1 or name.startswith("position_embd")
        kind = gguf.GGMLQuantizationType.F32 if plain else wanted
        data = gguf.quants.quantize(tensor.float().contiguous().numpy(), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf(package: Path) -> Any:
    if str(package) not in sys.path:
        sys.path.insert(0, str(package))
    return import_module("gguf")


def _describe(writer: Any, spec: ModelSpec) -> None:
    attention = spec.attention
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.mlp.intermediate_size)
    writer.add_block_count(spec.num_layers)
    writer.add_head_count(attention.num_query_heads)
    writer.add_head_count_kv(attention.num_kv_heads)
    writer.add_vocab_size(spec.vocab_size)
    if spec.family == "gpt2":
        writer.add_layer_norm_eps(spec.norm.epsilon)
        return
    writer.add_layer_norm_rms_eps(spec.norm.epsilon)
    writer.add_rope_dimension_count(spec.rope.dim)
    writer.add_rope_freq_base(spec.rope.theta)


def _vocabulary(writer: Any, folder: Path, spec: ModelSpec) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    writer.add_token_types([_CONTROL if one in special else _NORMAL for one in range(len(ids))])
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(spec.bos_token_id)
    writer.add_eos_token_id(spec.eos_token_ids[0])
    writer.add_add_bos_token(False)


def _tensors(
    folder: Path, files: Mapping[str, int], spec: ModelSpec
) -> Iterator[tuple[str, Tensor]]:
    """Each by its GGUF name, [out, in] or [out]."""
    for file in files:
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                yield _named(name, spec), _laid_out(name, opened.get_tensor(name), spec)


def _named(name: str, spec: ModelSpec) -> str:
    """Raises ValueError for a name that GGUF has no other for."""
    stem, _, ending = name.rpartition(".")
    layer, inner = "", stem.removeprefix("transformer.")
    for start in ("model.layers.", "h."):
        if inner.startswith(start):
            index, _, inner = inner.removeprefix(start).partition(".")
            layer = f"blk.{index}."
    try:
        return f"{layer}{_NAMES[spec.family][inner]}.{ending}"
    except KeyError:
        raise ValueError(f"GGUF has no name for {name!r} of {spec.family}") from None


def _laid_out(name: str, tensor: Tensor, spec: ModelSpec) -> Tensor:
    """GPT-2's products are stored [in, out]; llama.cpp turns neighbouring channels of a head, where
    the checkpoint's pairs lie half a head apart."""
    if spec.family == "gpt2":
        return tensor.t() if tensor.dim() == 2 and ".c_" in name else tensor
    heads = {
        "q_proj": spec.attention.num_query_heads,
        "k_proj": spec.attention.num_kv_heads,
    }.get(name.split(".")[-2])
    if heads is None:
        return tensor
    rows = tensor.view(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return torch.swapaxes(rows, 1, 2).reshape(tensor.shape)
