"""MPT as llm-foundry trained it, where transformers leaves a fact of its config.json out: another
largest bias than 8, and learned positions without ALiBi. transformers' model is given both here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.execution import stepping
from tests.parity import oracle
from tests.parity.family_checkpoints import MPT, VOCAB, Case, write_case

IDS = np.random.default_rng(29).integers(3, VOCAB, size=60).tolist()


def error_of(folder: Path, model: Any) -> float:
    theirs = oracle.logits(model, IDS)
    got = stepping.all_logits(stepping.built(folder, max_model_len=256).runner, IDS)
    return float((got - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("heads", [4, 3])
def test_the_largest_bias_is_the_files(heads: int, tmp_path: Path) -> None:
    facts = {"n_heads": heads, "d_model": 96, "attn_config": {"alibi_bias_max": 16}}
    model = write_case(Case("MptConfig", facts, base=MPT), tmp_path)
    assert error_of(tmp_path, model) > 0.01  # transformers takes 8
    build = model.transformer.build_mpt_alibi_tensor
    model.transformer.build_mpt_alibi_tensor = lambda *sizes, device: build(*sizes, 16, device)
    assert error_of(tmp_path, model) <= 1e-4


def test_without_alibi_positions_are_learned(tmp_path: Path) -> None:
    model = write_case(Case("MptConfig", {"attn_config": {"alibi": False}}, base=MPT), tmp_path)
    table = torch.randn(256, 64, generator=torch.Generator().manual_seed(3))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file) | {"transformer.wpe.weight": table}
    save_file(tensors, file, metadata={"format": "pt"})

    bias = torch.zeros(4, 1, 256)
    model.transformer.build_mpt_alibi_tensor = lambda *sizes, device: bias
    model.transformer.wte.register_forward_hook(lambda module, ids, rows: rows + table[: len(IDS)])
    assert error_of(tmp_path, model) <= 1e-4
