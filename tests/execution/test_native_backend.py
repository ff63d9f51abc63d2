"""Native kernels behind --backend: what they hold is what was planned, and who may ask for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from kernels.cpu.native import levels, library
from kernels.cpu.native.structs import MOST_GROUPS
from server.config.server_config import resolve
from server.engine.events import ChoiceOutput
from server.engine.request import EngineRequest, SamplingParams
from server.errors import StartupError
from server.memory.backends.native_cpu import NATIVE
from server.memory.backends.torch_cpu import TORCH
from server.memory.kinds import MemoryKind
from server.memory.program_values import value_places
from server.startup.model_info import ModelInfo, engine_settings, read_model
from server.startup.report import served_determinism
from server.startup.supported_models import unserved_by
from server.worker.build import BuiltEngine, build_engine
from tests.native_kernels import needs_native
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

pytestmark = needs_native

MODELS = {
    "tied": tiny_llama(),
    "tied, a vocabulary that fills no tile": tiny_llama(vocab_size=513),
    "untied": tiny_llama(tied=False),
    "biases and learned positions": tiny_gpt2(),
}
PROMPTS = [(1, 5, 9, 2), (3, 3, 8, 1, 7, 6)]


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("model"), MODELS[request.param])


def written(path: Path, spec: ModelSpec) -> Path:
    write_checkpoint(spec, path, seed=3, format="bf16")
    return path


def read(folder: Path, **flags: str) -> ModelInfo:
    """As quire serve reads it."""
    sizes = {"max-num-seqs": "4", "max-num-batched-tokens": "64", "max-model-len": "128"}
    return read_model(resolve({"model-dir": str(folder), "threads": "1", **sizes, **flags}, {}))


def build(model: ModelInfo) -> BuiltEngine:
    config = resolve({"model-dir": str(model.folder), "threads": "1"}, {})
    settings = engine_settings(config, model)
    return build_engine(replace(settings, debug_check_invariants=True), str)


def serve(engine: BuiltEngine, prompts: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    params = SamplingParams(seed=0, temperature=0.0, max_tokens=6, ignore_eos=True)
    engine.core.submit([EngineRequest(f"r{i}", tuple(p), params) for i, p in enumerate(prompts)])
    outputs: list[ChoiceOutput] = []
    while engine.core.has_work:
        frame = engine.core.step()
        assert frame is not None and not frame.refused
        outputs += frame.choices
    names = dict.fromkeys(o.request_id for o in outputs)
    return {n: [t for o in outputs if o.request_id == n for t in o.token_ids] for n in names}


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("float32", "none"), ("bfloat16", "none"), ("float16", "none"), ("bfloat16", "int8")],
)
def test_it_serves_and_its_books_balance(folder: Path, dtype: str, quantization: str) -> None:
    model = read(folder, backend="native", dtype=dtype, quantization=quantization)
    engine, plan = build(model), model.plan
    got = serve(engine, PROMPTS)
    if dtype == "float32":
        assert got == serve(build(read(folder, dtype=dtype)), PROMPTS), "torch's"
    reading = engine.accountant.read()
    assert sum(held.now for held in reading.kinds.values()) == reading.total
    for kind in (MemoryKind.WEIGHTS, MemoryKind.KV_CACHE, MemoryKind.IO, MemoryKind.WORKSPACE):
        assert reading.kinds[kind].now == plan.kinds[kind], kind
    assert engine.facts.weights == plan.layout.weights
    peak = reading.kinds[MemoryKind.ACTIVATIONS].peak
    assert 0 < peak <= plan.kinds[MemoryKind.ACTIVATIONS]
    assert "bit for bit, in any batch" in served_determinism(plan)


def test_it_is_taken_on_a_cpu_where_no_other_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, MODELS["tied"])
    assert read(folder, device="cpu").placement.backend is NATIVE
    for device in ("auto", "cpu"):
        for backend in (NATIVE, TORCH):
            placed = read(folder, device=device, backend=backend.name).placement
            assert (placed.backend, placed.passed_over) == (backend, ())
    with pytest.raises(StartupError, match="--backend native computes on a CPU, and --device is"):
        read(folder, device="cuda", backend="native")
    with pytest.raises(StartupError, match="not one of torch, native, triton"):
        read(folder, backend="blas")
    with pytest.raises(StartupError, match="--quantization int4 needs a GPU"):
        read(folder, backend="native", quantization="int4")


def test_a_level_is_named_by_a_variable(tmp_path: Path) -> None:
    folder = written(tmp_path, MODELS["tied"])
    chosen = levels.chosen_level().name

    def start(level: str, **flags: str) -> ModelInfo:
        named = {"model-dir": str(folder), "threads": "1", "max-model-len": "64", **flags}
        return read_model(resolve(named, {"QUIRE_CPU_LEVEL": level}))

    try:
        engine = build(start("portable", backend="native"))
        assert engine.facts.cpu_capability == "PORTABLE"
    finally:
        levels.choose_level(chosen)
    with pytest.raises(StartupError, match=r"^QUIRE_CPU_LEVEL=best: there is no level 'best'; the"):
        start("best", backend="native")
    with pytest.raises(StartupError, match=r"QUIRE_CPU_LEVEL=portable is for --backend native"):
        start("portable", backend="torch")
    for above in set(library.levels()) - set(library.levels_here()):
        with pytest.raises(StartupError, match=f"QUIRE_CPU_LEVEL={above}: this processor does not"):
            start(above, backend="native")


def test_a_level_that_was_not_tested_here_is_not_taken_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path, MODELS["tied"])
    monkeypatch.setattr(levels, "tested_levels", lambda: ())
    monkeypatch.setattr(levels, "_chosen", None)
    with pytest.raises(StartupError, match=r"--backend native: of its levels none has been tested"):
        read(folder, backend="native")


def test_more_kv_groups_than_a_step_can_name_are_refused_before_it_is_built() -> None:
    most = NATIVE.max_kv_groups
    assert most == MOST_GROUPS
    spec = tiny_llama(num_layers=most + 1)
    apart = replace(spec, windows=(*(4,) * most, 0))  # one layer of its own kind: groups of one
    assert unserved_by(NATIVE, spec) is None
    assert unserved_by(NATIVE, apart) == f"its KV cache has {most + 1} groups, more than {most}"


def test_it_needs_no_asking_for_equal_bits(tmp_path: Path) -> None:
    folder = written(tmp_path, MODELS["tied"])
    with pytest.raises(StartupError, match="leave it out; answers are equal to the bit without it"):
        read(folder, backend="native", **{"batch-invariant": "on"})


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(library, "FILE", tmp_path / "quire_cpu.so")
    library.library.cache_clear()
    yield
    library.library.cache_clear()


@pytest.mark.usefixtures("without_library")
def test_without_its_library_it_says_what_to_do(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", MODELS["tied"])
    with pytest.raises(StartupError, match=r"--backend native: .* no C compiler .* leave it out"):
        read(folder, backend="native")
    assert read(folder).placement.backend is TORCH


def test_values_that_live_at_the_same_time_lie_apart() -> None:
    """Of a gated MLP: its input, both halves, and what comes of them."""
    places = value_places(MODELS["tied"])
    (layer,) = places.layers
    names = ("hidden", "residual", "normed", "up")
    spans = sorted(layer[name] for name in names)
    for (start, channels), (following, _) in pairwise(spans):
        assert start + channels <= following
    assert max(start + channels for start, channels in layer.values()) <= places.channels
    assert places.channels < sum(channels for _, channels in layer.values()), "some share"
