"""Every family's folder as its publisher wrote it gives the logits of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.memory.kinds import MemoryKind
from tests.execution import stepping
from tests.parity import oracle
from tests.parity.family_checkpoints import VOCAB
from tests.parity.publisher_folders import PUBLISHED, write_published
from weights.checkpoint.folder import open_checkpoint
from weights.families import FAMILIES
from weights.inventory import num_parameters

PROMPT = np.random.default_rng(23).integers(3, VOCAB, size=75).tolist()  # longer than windows
SLOW = pytest.mark.slow
# Whose tensors or keys differ most from what transformers 5 saves; the others are slow.
NEAREST = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3", "phi3", "starcoder2", "cohere2"),
    *("gpt2", "gptj", "gpt_neo", "gpt_neox", "gpt_bigcode", "opt", "bloom", "falcon"),
)


@pytest.mark.parametrize(
    "family",
    [one.name if one.name in NEAREST else pytest.param(one.name, marks=SLOW) for one in FAMILIES],
)
def test_a_publishers_folder_gives_the_logits_of_transformers(family: str, tmp_path: Path) -> None:
    model = write_published(family, tmp_path)
    built = stepping.built(tmp_path, max_model_len=256)
    theirs = oracle.logits(model, PROMPT)
    error = (stepping.all_logits(built.runner, PROMPT) - theirs).abs().max() / theirs.abs().max()
    assert float(error) <= 1e-4
    assert built.layout.bytes(MemoryKind.WEIGHTS) == 4 * num_parameters(built.model)
    assert len(open_checkpoint(tmp_path).file_sizes) == 2


def test_every_family_has_a_publishers_folder() -> None:
    assert set(PUBLISHED) == {family.name for family in FAMILIES}
    assert all(len(row.names_from) > 12 for row in PUBLISHED.values())
