"""Folders as their publishers wrote them, where transformers now saves other names or keys: buffers
that are not parameters, names without a prefix, keys that have been renamed since."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.execution import stepping
from tests.parity import oracle
from tests.parity.family_checkpoints import CASES, VOCAB, write_case
from weights.families import resolve

PROMPT = np.random.default_rng(13).integers(3, VOCAB, size=60).tolist()
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Published:
    """A case of ``family`` with ``keys`` of config.json set, or removed where they are ``...``, and
    its tensors under the publisher's names. ``skips`` are those names that are not read."""

    family: str
    index: int
    keys: dict[str, Any]
    tensors: Callable[[Tensors], Tensors]
    skips: tuple[str, ...] = field(default=())


def _pythia(tensors: Tensors) -> Tensors:
    """EleutherAI/pythia-1.4b: vLLM's gpt_neox.py names the buffers that it leaves out."""
    layer = "gpt_neox.layers.0.attention"
    return tensors | {
        f"{layer}.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        f"{layer}.masked_bias": torch.tensor(-1e9),
        f"{layer}.rotary_emb.inv_freq": torch.ones(2),
    }


FOLDERS: dict[str, Published] = {
    "pythia": Published(
        "gpt_neox",
        0,
        {"rope_parameters": ..., "rotary_pct": 0.25, "rotary_emb_base": 10000},
        _pythia,
        skips=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_as_published_gives_the_numbers_of_transformers(name: str, tmp_path: Path) -> None:
    published = FOLDERS[name]
    model = write_case(CASES[published.family][published.index], tmp_path)
    path, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    config = {**json.loads(path.read_text()), **published.keys}
    path.write_text(json.dumps({key: one for key, one in config.items() if one is not ...}))
    save_file(published.tensors(load_file(weights)), weights, metadata={"format": "pt"})

    assert resolve(json.loads(path.read_text())).name == published.family
    built = stepping.built(tmp_path, max_model_len=256)
    skipped = [one.name for one in built.report.skipped]
    assert len(skipped) == len(published.skips)
    for suffix in published.skips:
        assert any(one.endswith(suffix) for one in skipped), suffix
    expected = oracle.logits(model, PROMPT)
    got = stepping.all_logits(built.runner, PROMPT)
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-4
