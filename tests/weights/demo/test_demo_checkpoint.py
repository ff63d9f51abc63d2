"""The shipped folder is a Hugging Face model and agrees with the trainer's own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from weights.demo.checkpoint import Progress, export, load_exported, load_run, save_run
from weights.demo.model import DemoModel, Shape
from weights.demo.optim import Optimiser, Rates
from weights.demo.score import CHECKPOINT
from weights.demo.tokenizer import load_tokenizer

SMALL = Shape(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=32,
)


def both_logits(folder: Path, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return load_exported(folder)(ids), theirs(ids).logits


@pytest.mark.parametrize("tokens", [1, 33, 1024])
def test_shipped_logits_equal_those_of_transformers(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(2, 4096, (2, tokens), generator=generator)
    ours, theirs = both_logits(CHECKPOINT, ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


def test_fresh_export_agrees_with_transformers(tmp_path: Path) -> None:
    model = DemoModel(SMALL, seed=3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(weight.numel()))
    export(model, load_tokenizer(CHECKPOINT), tmp_path)
    ours, theirs = both_logits(tmp_path, torch.arange(2, 34).view(1, 32))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_shipped_weights_are_bfloat16_small_and_named_as_llama_names_them() -> None:
    path = CHECKPOINT / "model.safetensors"
    assert path.stat().st_size <= 12_000_000
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    shape = Shape()
    blocks = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    blocks += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    blocks += ["input_layernorm", "post_attention_layernorm"]
    layers = range(shape.num_hidden_layers)
    expected = {f"model.layers.{i}.{block}.weight" for i in layers for block in blocks}
    assert names == expected | {"model.embed_tokens.weight", "model.norm.weight"}


def test_configs_agree_with_the_tokenizer() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((CHECKPOINT / "generation_config.json").read_text(encoding="utf-8"))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert config["vocab_size"] == len(tokenizer)
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id
    assert config["bos_token_id"] == generation["bos_token_id"] == tokenizer.bos_token_id
    assert tokenizer.model_max_length == config["max_position_embeddings"]
    text = "def f():\n    return '深度学习是'\n"
    assert tokenizer(text)["input_ids"] == load_tokenizer(CHECKPOINT).encode(text).ids


def test_a_run_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))

    def advance(model: DemoModel, optimiser: Optimiser, first: int, last: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            for count in range(first, last + 1):
                model.zero_grad()
                model.loss(ids[:, :-1], ids[:, 1:]).backward()
                optimiser.step(count, 1.0, pool)

    whole, halves, resumed = (DemoModel(SMALL, seed=seed) for seed in (5, 5, 6))
    optimisers = [Optimiser(model, Rates()) for model in (whole, halves, resumed)]
    advance(whole, optimisers[0], 1, 4)
    advance(halves, optimisers[1], 1, 2)
    path = tmp_path / "run.safetensors"
    save_run(path, halves, optimisers[1], Progress(2, 8, 1.5))
    assert load_run(path, resumed, optimisers[2]) == Progress(2, 8, 1.5)
    advance(resumed, optimisers[2], 3, 4)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
