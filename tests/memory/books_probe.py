"""Builds an engine as its process does, lets it work, and prints its books as one JSON object.

Run as ``python -m tests.memory.books_probe MODEL_DIR TOKENS DTYPE REQUESTS`` in a fresh
interpreter: the books are those of a whole process. TOKENS is the length of each of the REQUESTS
prompts of the load; of the readings under load the one with most unaccounted is kept.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
from collections.abc import Callable

from server.config.server_config import resolve
from server.engine.request import EngineRequest, SamplingParams
from server.memory.accounting.process import limit_malloc_arenas
from server.memory.accounting.reading import flatten
from server.startup.model_info import engine_settings, read_model

SIZE = 64 * 2**20


def main() -> None:
    limit_malloc_arenas()
    config = resolve({"model-dir": sys.argv[1], "threads": "1", "dtype": sys.argv[3]}, {})
    model = read_model(config)
    from server.worker.build import build_engine

    engine = build_engine(engine_settings(config, model), lambda text: None)

    def read() -> dict[str, int]:
        return flatten(engine.accountant.read())

    found = {"plan": model.plan.kinds, "idle": read()}
    prompt = tuple(range(1, int(sys.argv[2]) + 1))
    for i in range(int(sys.argv[4])):
        sampling = SamplingParams(seed=i, max_tokens=24, ignore_eos=True, top_p=0.9, logprobs=5)
        shared = prompt[: len(prompt) // 2] + tuple((t + i) % 500 + 1 for t in prompt)
        engine.core.submit([EngineRequest(f"r{i}", shared[: len(prompt)], sampling)])
    loads = []
    while engine.core.has_work:
        engine.core.step()
        if engine.core.has_work:
            loads.append(read())
    found["load"] = max(loads, key=lambda reading: abs(reading["unaccounted"]))
    found["after"] = read()
    for name, allocate in WAYS.items():
        found[f"{name}.before"] = read()
        free = allocate()
        found[f"{name}.held"] = read()
        free()
        found[f"{name}.freed"] = read()
    print(json.dumps(found))


def by_mmap() -> Callable[[], None]:
    area = mmap.mmap(-1, SIZE)
    for offset in range(0, SIZE, mmap.PAGESIZE):
        area[offset] = 1
    return area.close


def by_one_malloc() -> Callable[[], None]:
    area = [bytearray(b"x") * SIZE]
    return area.clear


def by_many_mallocs() -> Callable[[], None]:
    """Chunks of 40 KiB, below malloc's threshold: they come from its arena."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    size = 40 * 1024
    chunks = [libc.malloc(size) for _ in range(SIZE // size)]
    for chunk in chunks:
        ctypes.memset(chunk, 1, size)

    def free() -> None:
        for chunk in chunks:
            libc.free(chunk)

    return free


WAYS = {"mmap": by_mmap, "one malloc": by_one_malloc, "many mallocs": by_many_mallocs}

if __name__ == "__main__":
    main()
