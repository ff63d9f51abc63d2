"""What families bring (norms of outputs, of queries and keys, scales, parallel blocks, caps,
windows) as planned, against what a largest step takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.execution.build import BuiltRunner
from server.memory.kinds import MemoryKind
from tests.execution import stepping
from tests.parity.family_checkpoints import CASES as FAMILY_CASES
from tests.parity.family_checkpoints import GEMMA4, GPT, OPT, WINDOW, Case, write_case

WIDE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 8, "vocab_size": 64}
CASES = {
    "output norms, norms over all heads": Case("Olmo2Config", WIDE),
    "four norms, caps, windows": Case(
        "Gemma2Config", WIDE | {"head_dim": 32, "sliding_window": WINDOW}
    ),
    "heads of two sizes": Case(
        "Gemma4TextConfig",
        WIDE
        | {
            **GEMMA4,
            **{"global_head_dim": 64, "vocab_size_per_layer_input": 64},
            **{"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        },
    ),
    "shared keys, inputs of layers": Case(
        "Gemma4TextConfig",
        WIDE
        | GEMMA4
        | {
            "layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2,
            **{"global_head_dim": 64, "num_kv_shared_layers": 3, "use_double_wide_mlp": True},
            **{"hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": 64},
        },
    ),
    "norms of heads": Case("Qwen3Config", WIDE | {"head_dim": 128}),
    "scales": Case(
        "GraniteConfig", WIDE | {"residual_multiplier": 0.3, "embedding_multiplier": 4.0}
    ),
    "parallel": Case("CohereConfig", WIDE),
    "parallel, biases": Case("PhiConfig", WIDE | {"num_key_value_heads": 8}),
    "squared relu": Case("ArceeConfig", WIDE),
    "norms of sums": Case("OpenAIGPTConfig", {"n_embd": 256, "n_head": 8}, base=GPT),
    "an embedding of another width": Case(
        "OPTConfig",
        {
            "hidden_size": 256,
            "ffn_dim": 384,
            "num_attention_heads": 8,
            "do_layer_norm_before": False,
            "word_embed_proj_dim": 512,
        },
        base=OPT,
    ),
}
MIB = 1 << 20


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_a_largest_step_and_the_weights_are_as_planned(
    name: str, format: str, tmp_path: Path
) -> None:
    write_case(CASES[name], tmp_path)
    built = stepping.built(
        tmp_path,
        format=format,
        max_model_len=256,
        max_num_batched_tokens=1024,
        max_num_seqs=8,
        num_blocks=512,
    )
    measured = built.runner.warm_up()
    planned = built.layout.bytes(MemoryKind.ACTIVATIONS)
    assert measured <= planned <= 1.5 * measured + 4 * MIB  # a bound of windows' work lists
    assert_held_as_planned(built)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "index"),
    [(name, i) for name, cases in FAMILY_CASES.items() for i in range(len(cases))],
)
def test_no_family_takes_more_than_is_planned(family: str, index: int, tmp_path: Path) -> None:
    """At a width of 64, where what a plan bounds from above is much of it."""
    write_case(FAMILY_CASES[family][index], tmp_path)
    built = stepping.built(tmp_path, max_model_len=256, max_num_batched_tokens=1024, max_num_seqs=8)
    assert built.runner.warm_up() <= built.layout.bytes(MemoryKind.ACTIVATIONS)
    assert_held_as_planned(built)


def assert_held_as_planned(built: BuiltRunner) -> None:
    held = built.held.by_kind()
    for kind in (MemoryKind.WEIGHTS, MemoryKind.KV_CACHE, MemoryKind.IO, MemoryKind.WORKSPACE):
        assert held[kind] == built.layout.bytes(kind), kind
    assert built.held.weights() == built.layout.weights
