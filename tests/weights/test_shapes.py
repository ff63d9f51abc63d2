"""A user's own shape: read strictly, refused by key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from weights.errors import CheckpointError
from weights.inventory import num_parameters
from weights.presets import find_preset, read_presets
from weights.shape_keys import SHAPE_KEYS
from weights.shapes import read_document, shape_spec
from weights.spec import (
    ExpertsSpec,
    LatentSpec,
    NormKind,
    NormPlacement,
    ParallelBlock,
    PositionKind,
    QkNorm,
)

SMALL: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_layers": 4,
    "num_query_heads": 8,
    "intermediate_size": 128,
    "max_positions": 2048,
}


def shape(**changes: Any) -> dict[str, Any]:
    return {**SMALL, **changes}


def test_what_is_left_out_is_a_llama() -> None:
    spec = shape_spec(SMALL, "own.toml")
    assert (spec.attention.num_kv_heads, spec.attention.head_dim, spec.rope.dim) == (8, 8, 8)
    assert spec.parameter_dtype == "bf16"
    assert spec.mlp.gated and not spec.tied_unembedding and spec.norm.kind is NormKind.RMS
    assert num_parameters(spec) == 2 * 64_000 + 4 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64


def test_every_key_reaches_the_spec() -> None:
    spec = shape_spec(
        shape(
            num_kv_heads=1,
            head_dim=16,
            rotary_dim=8,
            rope_theta=1e6,
            local_rope_theta=1e4,
            dtype="float16",
            tied_unembedding=True,
            activation="gelu_erf",
            gated=False,
            norm="layer",
            norm_bias=False,
            norm_placement="both",
            parallel="two_norms",
            qk_norm="whole",
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            unembedding_bias=True,
            embedding_size=32,
            position_offset=2,
            window=100,
            full_every=3,
            attention_soft_cap=50.0,
            logit_soft_cap=30,
            embedding_scale=8,
            num_experts=6,
            experts_per_token=2,
            expert_size=32,
            shared_expert_size=48,
            shared_expert_gate=True,
            router_bias=True,
            sinks=True,
            norm_weight=False,
            num_dense_layers=1,
            family="own",
            source="here",
        ),
        "own.toml",
    )
    assert spec.windows == (100, 100, 0, 100)
    assert spec.experts == ExpertsSpec(6, 2, 32, 48, True, True, 1)
    assert spec.norm.placement is NormPlacement.BOTH and not spec.norm.has_bias
    assert spec.attention.sinks and not spec.norm.weight
    assert spec.parallel is ParallelBlock.TWO_NORMS and spec.attention.qk_norm is QkNorm.WHOLE
    assert spec.attention.qkv_bias and spec.attention.output_bias and spec.mlp.bias
    assert (spec.embedding_size, spec.table_width) == (32, 32)
    assert spec.unembedding_bias and spec.position_offset == 2 and not spec.mlp.gated
    assert (spec.attention.soft_cap, spec.logit_soft_cap, spec.embedding_scale) == (50, 30, 8)
    assert (spec.rope.dim, spec.rope.theta, spec.family) == (8, 1e6, "own")
    assert spec.local_rope is not None and spec.local_rope.theta == 1e4
    latent = {"kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 4, "v_head_dim": 6}
    spec = shape_spec(shape(head_dim=10, **latent), "own.toml")
    assert spec.attention.latent == LatentSpec(32, 4, 6, 48)
    assert spec.kv_elements(0) == 32 + 4 and spec.rope.dim == 4
    learned = shape_spec(shape(position="learned"), "own.toml")
    assert learned.position is PositionKind.LEARNED


def test_a_document_of_every_key_has_no_key_that_is_not_read() -> None:
    """A key in the table that nothing reads would be accepted and ignored."""
    read: set[str] = set()

    class Watched(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

    shape_spec(Watched(shape(num_experts=2, experts_per_token=1, expert_size=8)), "own")
    latent = {"kv_lora_rank": 32, "qk_rope_head_dim": 4, "v_head_dim": 8}
    shape_spec(Watched(shape(**latent)), "own")
    assert set(SHAPE_KEYS) == read


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layer": 3}, 'unknown key "num_layer"; did you mean num_layers'),
        ({"num_layers": None}, "num_layers is null; a shape needs it"),
        ({"num_layers": 0}, r"num_layers is 0; it must lie in 1\.\."),
        ({"hidden_size": "64"}, 'hidden_size must be a whole number, not "64"'),
        ({"hidden_size": True}, "hidden_size must be a whole number, not true"),
        (
            {"hidden_size": 60},
            "hidden_size 60 is not a multiple of num_query_heads 8; give head_dim",
        ),
        ({"num_kv_heads": 3}, "num_query_heads 8 is not a multiple of num_kv_heads 3"),
        ({"rotary_dim": 3}, "rotary_dim is 3; channels turn in pairs"),
        ({"rotary_dim": 16}, r"rotary_dim is 16; it must lie in 2\.\.8"),
        ({"full_every": 2}, "full_every needs a window"),
        ({"expert_size": 2}, "expert_size needs num_experts"),
        ({"router_bias": True}, "router_bias needs num_experts"),
        ({"v_head_dim": 8}, "v_head_dim needs kv_lora_rank"),
        ({"kv_lora_rank": 8, "num_kv_heads": 4}, "kv_lora_rank gives every query head keys"),
        ({"kv_lora_rank": 8, "qk_norm": "head"}, "qk_norm is not planned beside kv_lora_rank"),
        ({"num_experts": 2, "experts_per_token": 3, "expert_size": 8}, "experts_per_token is 3"),
        ({"num_experts": 2, "expert_size": 8}, "experts_per_token is missing"),
        ({"norm": "batch"}, 'norm is "batch"; served: rms, layer'),
        ({"dtype": "fp8"}, "dtype is"),
        ({"gated": 1}, "gated must be true or false, not 1"),
        ({"family": ""}, "family must be a text that is not empty"),
        ({"source": ["a", "b"]}, "source must be a text that is not empty"),
        ({"logit_soft_cap": -1}, "logit_soft_cap is -1; it must be above 0"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        shape_spec(shape(**changes), "own.toml")
    assert str(raised.value).startswith("own.toml: ")


def test_toml_and_json_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("\n".join(f"{key} = {SMALL[key]}" for key in SMALL))
    (tmp_path / "own.json").write_text(json.dumps(SMALL))
    assert read_document(tmp_path / "own.toml") == read_document(tmp_path / "own.json") == SMALL


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("own.toml", "a = ", "is not TOML"),
        ("own.toml", b"\xff", "is not TOML"),
        ("own.toml", "num_layers = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("own.json", "{", "is not valid JSON"),
        ("own.json", '{"a": 1, "a": 2}', "duplicate key"),
        ("own.json", "[]", "must be a JSON object"),
        ("own.yaml", "a: 1", r"neither a \.toml nor a \.json file"),
        ("own.json", " " * (2**20 + 1), "at most 1048576 are read"),
    ],
)
def test_a_file_that_is_no_document(
    tmp_path: Path, file: str, text: str | bytes, message: str
) -> None:
    path = tmp_path / file
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message):
        read_document(path)
    with pytest.raises(CheckpointError, match="No such file"):
        read_document(tmp_path / "absent.toml")


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.toml").mkdir()
    for name, message in (
        ("zero.toml", "is not a regular file"),
        ("pipe.json", "is not a regular file"),
        ("folder.toml", "is a folder; --shape takes a file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_document(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"neither a \.toml nor"):
        read_document(Path("/dev/zero"))


def test_presets_are_found_in_any_case_and_near_names_are_offered() -> None:
    assert find_preset("Llama-3.1-8B").name == "llama-3.1-8b"
    with pytest.raises(CheckpointError, match=r"'mistral-7'; did you mean mistral-7b"):
        find_preset("mistral-7")
    assert len(read_presets()) > 40
