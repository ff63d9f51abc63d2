"""A model whose layers are two groups of the KV cache, one with a window: each group reads its own
block tables, and an answer depends on its request alone. On a CPU, and on a device that runs late.

A Llama is told of windows; what is exact is said by transformers' Qwen2, which is a Llama with
windows where its biases are zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import kernels
from server.engine.core import EngineCore
from server.engine.engine_config import CacheConfig
from server.engine.kv_cache_manager import KVCacheManager
from server.engine.kv_spec import NULL_BLOCK, GroupKind, KVCacheGroup, KVCacheSpec
from server.execution.buffers import allocate
from server.execution.cpu_device import CpuDevice
from server.execution.cuda_graphs import GraphMode
from server.execution.device import Device
from server.execution.model import build_decoder, fill_position_tables
from server.execution.model_runner import ModelRunner
from server.memory.kv_groups import kv_cache_spec
from server.memory.layout import Layout, build_layout
from tests.equivalence import checks, harness, rounding, workloads
from tests.equivalence.checks import Setting
from tests.execution import fake_device, stepping
from weights.checkpoint.folder import open_checkpoint
from weights.families import resolve
from weights.loading.loader import load

WINDOWS = (0, 24, 24, 0)
LLAMA = replace(checks.SPECS["llama"], num_layers=len(WINDOWS))


@dataclass(frozen=True)
class Built:
    runner: ModelRunner
    layout: Layout
    kv: KVCacheSpec
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TwoGroups(Setting):
    """A checkpoint of full and windowed layers."""

    windows: tuple[int, ...] = WINDOWS
    late: bool = False
    patch: pytest.MonkeyPatch = field(kw_only=True)

    def built(self, num_tokens: int = 8192) -> Built:  # type: ignore[override]
        backend = "triton" if self.late else "torch"
        config = harness.runner_config(self.block_size, num_tokens, backend=backend)
        checkpoint = open_checkpoint(self.folder)
        model = replace(resolve(checkpoint.config).spec(checkpoint.config), windows=self.windows)
        layout = build_layout(model, config)
        loaded = load(checkpoint, model, format="f32", pack=kernels.pack_linear)
        device: Device = CpuDevice()
        buffers = allocate(layout, device.torch_device)
        if self.late:
            late = fake_device.FakeDevice()
            fake_device.install(late, self.patch)
            device = late  # type: ignore[assignment]
        runner = ModelRunner(
            build_decoder(
                model,
                loaded.linears,
                loaded.tensors,
                fill_position_tables(model, 256, buffers),
                layout,
                buffers,
            ),
            layout,
            buffers,
            model.eos_token_ids,
            device,
            graphs=GraphMode.LAZY,
            poison=True,
        )
        kv = kv_cache_spec(model, config.cache)
        return Built(runner, layout, kv, model.eos_token_ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(checks.SPECS, "llama", LLAMA)
        yield checks.write("llama", tmp_path_factory.mktemp("two-groups"))


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, ...], harness.Run]:
    """What a CPU answers to one request at a time, for both devices."""
    return {}


@torch.inference_mode()
def exact_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    """[len(ids), V] of the same weights in transformers' Qwen2."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig, Qwen2Config, Qwen2ForCausalLM

    given = LlamaConfig.from_pretrained(folder).to_dict()
    given |= {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "sliding_window": max(WINDOWS),
        "max_window_layers": 0,
        "layer_types": ["sliding_attention" if one else "full_attention" for one in WINDOWS],
        "attn_implementation": "eager",
    }
    model = Qwen2ForCausalLM(Qwen2Config(**given)).float().eval()
    missing, unexpected = model.load_state_dict(
        load_file(folder / "model.safetensors"), strict=False
    )
    assert not unexpected
    for name, parameter in model.named_parameters():
        if name in missing:
            assert name.endswith(("_proj.bias", "lm_head.weight")), name
        if name.endswith("_proj.bias"):
            parameter.zero_()
    logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def test_there_are_two_groups_and_one_has_a_window() -> None:
    kv = kv_cache_spec(
        replace(LLAMA, windows=WINDOWS), CacheConfig(block_size=16, num_blocks=8, format="f32")
    )
    assert [group.kind for group in kv.groups] == [GroupKind.FULL, GroupKind.WINDOW]
    assert [group.layer_ids for group in kv.groups] == [(0, 3), (1, 2)]
    assert KVCacheManager(kv, max_chunk=64, prefix_caching=False).num_groups == 2


def test_logits_are_those_of_a_plain_model_with_windows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list(workloads.prompt(4, 90))
    runner = TwoGroups(folder, patch=monkeypatch).built().runner
    got, exact = stepping.all_logits(runner, ids), exact_logits(folder, ids)
    torch.testing.assert_close(got, exact, atol=rounding.APART, rtol=0)


@pytest.mark.parametrize("name", checks.CHECKS)
@pytest.mark.parametrize(
    "late", [pytest.param(False, id="cpu"), pytest.param(True, id="late", marks=pytest.mark.slow)]
)
def test_answers_are_equal(
    name: str,
    late: bool,
    folder: Path,
    known: dict[tuple[str, ...], harness.Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = TwoGroups(folder, known=known, late=late, patch=monkeypatch)
    checks.CHECKS[name](one)


@pytest.mark.parametrize("name", ["chunked equals whole", "cached equals uncached"])
def test_answers_are_equal_where_all_layers_have_a_window(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.CHECKS[name](TwoGroups(folder, windows=(24,) * 4, known={}, patch=monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("name", checks.CHECKS)
def test_answers_are_equal_in_blocks_of_64_tokens(
    name: str,
    folder: Path,
    known: dict[tuple[str, ...], harness.Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "short of blocks equals plenty":
        pytest.skip("256 tokens are 4 blocks of 64: too few for a row of each group")
    one = TwoGroups(folder, block_size=64, known=known, patch=monkeypatch)
    checks.CHECKS[name](one)


def test_a_window_group_holds_its_window_alone(
    folder: Path, known: dict[tuple[str, ...], harness.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = TwoGroups(folder, known=known, patch=monkeypatch)
    requests, built = workloads.prefixed(), one.built()
    full, window = built.kv.groups
    freed = 0

    def count(core: EngineCore, steps: int) -> None:
        nonlocal freed
        for sequence in core.scheduler.state.running:
            whole, seen = sequence.block_tables
            held = sum(block != NULL_BLOCK for block in seen)
            assert NULL_BLOCK not in whole and len(whole) == len(seen)
            assert held <= window.blocks_of(sequence.num_computed_tokens) <= 3
            freed = max(freed, len(seen) - held)

    cached = harness.run(built, requests, budget=50, prefix_caching=True, on_step=count)  # type: ignore[arg-type]
    assert freed >= 4 and full.blocks_of(100) == 7
    harness.assert_equal(cached, one.plain(requests))


def test_a_block_freed_too_early_is_noticed(
    folder: Path, known: dict[tuple[str, ...], harness.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pool that is short of blocks another row has it, and writes it, at once."""
    one = TwoGroups(folder, known=known, patch=monkeypatch)
    one.plain(workloads.growing())
    real = KVCacheGroup.first_block

    def early(group: KVCacheGroup, position: int) -> int:
        return min(real(group, position + group.block_size), position // group.block_size)

    monkeypatch.setattr(KVCacheGroup, "first_block", early)
    with pytest.raises(AssertionError):
        checks.short_of_blocks_equals_plenty(one)


def test_one_groups_tables_for_all_are_noticed(
    folder: Path,
    known: dict[tuple[str, ...], harness.Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = TwoGroups(folder, known=known, patch=monkeypatch)
    one.plain(workloads.mixed())
    real = kernels.gather_step

    def gather(*args: Any, group: int, **how: Any) -> None:
        real(*args, group=0, **how)

    monkeypatch.setattr(kernels, "gather_step", gather)
    with pytest.raises(AssertionError):
        checks.chunked_equals_whole(one)
