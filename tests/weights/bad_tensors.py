"""Tensors that are not those which config.json asks for."""

from __future__ import annotations

from pathlib import Path

from tests.weights.folders import (
    WEIGHTS,
    append_tensor,
    drop_last_tensor,
    edit_config,
    rename_tensors,
)
from tests.weights.mutations import Mutations

BAD_TENSORS = Mutations()

BAD_TENSORS.entry("shape_of_another_model", "[16, 64]", "[32, 32]", shape=[16, 64])


@BAD_TENSORS.mutation(WEIGHTS, "model.embed_tokens.weight", "301")
def vocabulary_of_another_model(folder: Path) -> None:
    edit_config(folder, vocab_size=301)


@BAD_TENSORS.mutation(WEIGHTS, "missing", "model.layers.2.")
def layer_missing(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3)


@BAD_TENSORS.mutation(WEIGHTS, "unexpected", "model.layers.1.")
def layer_too_many(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1)


@BAD_TENSORS.mutation(WEIGHTS, "missing", "lm_head.weight")
def tensor_missing(folder: Path) -> None:
    if drop_last_tensor(folder) != "lm_head.weight":
        raise ValueError("the synthetic folder ends in another tensor now")


@BAD_TENSORS.mutation(WEIGHTS, "unexpected", "model.layers.0.self_attn.q_norm.weight")
def tensor_unexpected(folder: Path) -> None:
    append_tensor(folder, "model.layers.0.self_attn.q_norm.weight", bytes(32), [8])


@BAD_TENSORS.mutation(WEIGHTS, "unexpected", "model.layers.0.self_attn.q_proj.bias")
def bias_that_the_config_denies(folder: Path) -> None:
    append_tensor(folder, "model.layers.0.self_attn.q_proj.bias", bytes(128), [32])


@BAD_TENSORS.mutation(WEIGHTS, "missing", "model.norm.weight", "unexpected", "model.nrom.weight")
def tensor_misspelt(folder: Path) -> None:
    rename_tensors(folder, lambda name: name.replace("model.norm", "model.nrom"))


@BAD_TENSORS.mutation(WEIGHTS, '"norm.weight"', "same parameter")
def tensor_with_and_without_prefix(folder: Path) -> None:
    append_tensor(folder, "norm.weight", bytes(128), [32])


@BAD_TENSORS.mutation(WEIGHTS, "lm_head.weight", "tie_word_embeddings", tied=True, in_bytes=True)
def tied_copy_differs(folder: Path) -> None:
    append_tensor(folder, "lm_head.weight", bytes(300 * 32 * 4), [300, 32])


@BAD_TENSORS.mutation(WEIGHTS, "lm_head.weight", "tie_word_embeddings", tied=True)
def tied_copy_of_another_shape(folder: Path) -> None:
    append_tensor(folder, "lm_head.weight", bytes(299 * 32 * 4), [299, 32])
