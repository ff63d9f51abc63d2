"""Loads a folder as an engine does, and prints the most bytes that it took as JSON.

Run as ``python -m tests.memory.loading_peak FOLDER QUANTIZATION``, "none" for none, in a fresh
interpreter: the figures are of a whole process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from server.config.server_config import resolve
from server.execution.build import BuiltRunner, build_runner
from server.memory.accounting.process import limit_malloc_arenas
from server.startup.model_info import engine_settings, read_model
from server.worker.memory_accounting import open_device
from tests.memory.resident_peak import resident_peak


def main(folder: str, quantization: str) -> None:
    limit_malloc_arenas()
    small = {"kv-cache-memory": "1MiB", "max-model-len": "64", "max-num-seqs": "1"}
    options = {"model-dir": folder, "dtype": "bfloat16", "threads": "2", **small}
    if quantization != "none":
        options["quantization"] = quantization
    config = resolve(options, {})
    settings = engine_settings(config, read_model(config))
    opened = open_device(settings)
    built: list[BuiltRunner] = []

    def load() -> None:
        made = build_runner(
            Path(settings.model_dir),
            settings.config,
            num_threads=2,
            warm_up=False,
            opened=opened,
        )
        built.append(made)

    peak = resident_peak(load)
    held = built[0].held
    others = sum(held.by_kind().values()) - sum(held.weights().values())
    print(
        json.dumps(
            {
                "backend": settings.config.model.backend,
                "peak": peak - others,
                "weights": sum(held.weights().values()),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
