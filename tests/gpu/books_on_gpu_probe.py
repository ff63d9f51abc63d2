"""Builds an engine as its process does, loads it with requests, and prints its books as JSON.

Run as ``python -m tests.gpu.books_on_gpu_probe MODEL_DIR [DEVICE]`` in a fresh interpreter: the
books are those of a whole process. Beside each reading stands what NVML says at that moment, asked
by this file and not by the accountant. DEVICE cpu only shows that the probe itself runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
from typing import Any

from server.config.server_config import resolve
from server.engine.request import EngineRequest, SamplingParams
from server.memory.accounting.gpu_device import find_gpu
from server.memory.accounting.process import limit_malloc_arenas
from server.memory.accounting.reading import flatten
from server.startup.model_info import engine_settings, read_model

BEHIND = 64 * 2**20
PROMPTS, PROMPT_TOKENS, OUTPUT_TOKENS = 48, 300, 48


def main(model_dir: str, device: str = "cuda") -> None:
    limit_malloc_arenas()
    flags = {"model-dir": model_dir, "device": device, "threads": "2", "cuda-graphs": "start"}
    if device == "cpu":
        del flags["cuda-graphs"]
    config = resolve(flags, {})
    model = read_model(config)
    from server.worker.build import build_engine

    engine = build_engine(engine_settings(config, model), lambda text: None)
    plan = model.plan
    found: dict[str, Any] = {
        "device": engine.facts.cpu_capability,
        "plan": plan.kinds,
        "weights": {"planned": plan.layout.weights, "measured": engine.facts.weights},
        "pinned_planned": plan.layout.pinned_bytes,
        "readings": {"idle": reading(engine)},
    }
    choose = random.Random(1)
    for i in range(PROMPTS):
        tokens = tuple(choose.randrange(1, 1000) for _ in range(PROMPT_TOKENS))
        sampling = SamplingParams(
            seed=i, max_tokens=OUTPUT_TOKENS, ignore_eos=True, top_p=0.9, logprobs=5
        )
        engine.core.submit([EngineRequest(f"r{i}", tokens, sampling)])
    worst: dict[str, Any] = {}
    while engine.core.has_work:
        engine.core.step()
        now = reading(engine)
        if not worst or abs(now["books"]["unaccounted"]) > abs(worst["books"]["unaccounted"]):
            worst = now
    found["readings"] |= {"load": worst, "after": reading(engine)}
    if device == "cuda":
        found["readings"] |= behind_the_back(engine)
    print(json.dumps(found))


def reading(engine: Any) -> dict[str, Any]:
    return {"books": flatten(engine.accountant.read()), "nvml": nvml()}


def nvml() -> dict[str, int | None]:
    """What NVML says of the device and of this process; None where it does not."""
    gpu = find_gpu()
    use = None if gpu is None or gpu.nvml is None else gpu.nvml.read()
    if use is None:
        return {"total": None, "free": None, "own": None}
    own = None if use.processes is None else use.processes.get(os.getpid())
    return {"total": use.total, "free": use.free, "own": own}


def behind_the_back(engine: Any) -> dict[str, Any]:
    """The driver gives memory that torch's allocator does not know of."""
    driver, pointer = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
    before = reading(engine)
    if driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(BEHIND)):
        raise MemoryError("the driver gave no memory")
    held = reading(engine)
    driver.cuMemFree_v2(pointer)
    return {"before behind": before, "held behind": held, "freed behind": reading(engine)}


if __name__ == "__main__":
    main(*sys.argv[1:])
