"""What one of several ranks holds, counted two ways."""

from __future__ import annotations

import math

import pytest

from weights.inventory import Component, inventory
from weights.presets import find_preset
from weights.spec import ModelSpec
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama
from weights.tensor_parallel import check_ranks, rank_shape, rank_spec

# Every component that is shared out along heads or along the MLP's inner width.
SHARED = {
    Component.QUERY,
    Component.KEY,
    Component.VALUE,
    Component.OUTPUT,
    Component.GATE,
    Component.UP,
    Component.DOWN,
}


def elements(spec: ModelSpec, ranks: int, component: Component) -> int:
    total = 0
    for parameter in inventory(spec):
        if parameter.component is component:
            rows = rank_shape(parameter, ranks)
            total += rows[0] * rows[1] if len(rows) == 2 else rows[0]
    return total


@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b", "gemma-2-9b", "palm-540b"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_splits_and_the_model_of_one_rank_agree(name: str, ranks: int) -> None:
    spec = find_preset(name).spec
    alone = rank_spec(spec, ranks)
    for component in SHARED:
        assert elements(spec, ranks, component) == elements(alone, 1, component), component


def test_what_divides_adds_up_to_the_whole() -> None:
    divided = 0
    for parameter in inventory(tiny_gpt2()):
        held = rank_shape(parameter, 4)
        if held != parameter.shape:
            divided += 1
            assert 4 * math.prod(held) == parameter.num_elements, parameter.name
    assert divided > 0


def test_fewer_heads_than_ranks_are_copied() -> None:
    spec = tiny_llama(num_query_heads=8, num_kv_heads=2)
    key = next(p for p in inventory(spec) if p.component is Component.KEY)
    assert [rank_shape(key, ranks)[0] // 16 for ranks in (1, 2, 4, 8)] == [2, 1, 1, 1]
    assert rank_spec(spec, 8).attention.num_kv_heads == 1


def test_a_vocabulary_that_does_not_divide_is_padded() -> None:
    table = inventory(tiny_llama(vocab_size=1001))[0]
    assert rank_shape(table, 4) == (251, 64)


def test_an_inner_width_that_does_not_divide_is_padded() -> None:
    spec = tiny_llama(num_query_heads=8, num_kv_heads=8, intermediate_size=130)
    down = next(p for p in inventory(spec) if p.component is Component.DOWN)
    assert rank_shape(down, 4) == (64, 33)
    for component in SHARED:
        assert elements(spec, 4, component) == elements(rank_spec(spec, 4), 1, component)


def test_heads_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="25 query heads do not divide over 2 ranks"):
        check_ranks(find_preset("gpt-2-xl").spec, 2)
    with pytest.raises(ValueError, match="6 key-value heads neither divide over 4 ranks"):
        rank_spec(tiny_llama(num_query_heads=12, num_kv_heads=6), 4)
