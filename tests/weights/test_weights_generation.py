"""Which ids end an answer: generation_config.json, then config.json, then the family's default."""

from __future__ import annotations

from typing import Any

import pytest

from weights import families
from weights.errors import CheckpointError
from weights.generation import end_of_sequence_ids, end_of_sequence_source

SIZES = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
THEIRS, OURS, DEFAULT = "generation_config.json", "config.json", "the family's"
NOTHING: dict[str, Any] = {"temperature": 0.5}


def ids(config: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    whole = {**SIZES, **config}
    return end_of_sequence_ids(families.resolve(whole).spec(whole), generation)


@pytest.mark.parametrize(
    ("config", "generation", "expected", "source"),
    [
        # The family's default, 2, is nobody's word where a file names an id.
        ({}, {"eos_token_id": 9}, (9,), THEIRS),
        ({}, {"eos_token_id": [10, 9, 9]}, (9, 10), THEIRS),
        ({"eos_token_id": None}, {"eos_token_id": 9}, (9,), THEIRS),
        ({"eos_token_id": 7}, {"eos_token_id": 9}, (9,), THEIRS),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": [9, 7]}, (7, 9), THEIRS),
        ({"eos_token_id": 7}, {"eos_token_id": 0}, (0,), THEIRS),
        ({"eos_token_id": 7}, NOTHING, (7,), OURS),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": None}, (7, 8), OURS),
        ({"eos_token_id": 7}, {"eos_token_id": []}, (7,), OURS),
        ({"eos_token_id": 7}, {}, (7,), OURS),
        ({"eos_token_id": None}, NOTHING, (), OURS),
        ({"eos_token_id": []}, {}, (), OURS),
        ({}, NOTHING, (2,), DEFAULT),
        ({}, {}, (2,), DEFAULT),
    ],
)
def test_who_names_the_ids_that_end_an_answer(
    config: dict[str, Any], generation: dict[str, Any], expected: tuple[int, ...], source: str
) -> None:
    assert ids(config, generation) == expected
    assert end_of_sequence_source(config, generation).startswith(source)


@pytest.mark.parametrize("given", [64, -1, True, "2", [2, None], 1.0])
def test_what_is_no_id_is_refused_by_name(given: object) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id"):
        ids({"eos_token_id": 7}, {"eos_token_id": given})
