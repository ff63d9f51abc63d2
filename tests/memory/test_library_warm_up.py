"""What MKL keeps for itself is kept before the base reading: later products take nothing more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_MKL = "torch is built without MKL"
# MKL's buffers are those of a process: for each number of threads they are counted in a fork of one
# that has imported everything and computed nothing.
PROBE = f"""
import ctypes, os, sys
from pathlib import Path
import torch
import kernels
from server.config.server_config import DEMO_MODEL_DIR, resolve
from server.execution.library_warm_up import warm_libraries
from server.startup.model_info import engine_settings, read_model

library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))))
held = getattr(library, "mkl_serv_mem_stat", None)
if held is None:
    sys.exit("{NO_MKL}")
held.restype = ctypes.c_int64
buffers = ctypes.c_int()
config = resolve({{"model-dir": str(DEMO_MODEL_DIR), "device": "cpu"}}, {{}})
model = read_model(config)

def measure(threads):
    torch.set_num_threads(threads)
    warm_libraries(engine_settings(config, model).config, model.spec)
    before = held(ctypes.byref(buffers))
    products = ((1408, 256, 512), (4096, 256, 256), (512, 256, 512), (256, 704, 512))
    for out_features, in_features, most_rows in products:  # the unembedding has half a step's rows
        weight = kernels.pack_linear(torch.zeros(out_features, in_features), "f32", None)
        for rows in range(1, most_rows + 1, 8):
            kernels.linear(torch.zeros(rows, in_features), weight)
    print(held(ctypes.byref(buffers)) - before, flush=True)

for threads in map(int, sys.argv[1:]):
    child = os.fork()
    if not child:
        measure(threads)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed on {{threads}} threads")
"""


def test_no_product_of_the_model_makes_mkl_keep_more() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "1", "2"], cwd=ROOT, capture_output=True, text=True
    )
    if NO_MKL in done.stderr:
        pytest.skip(NO_MKL)
    assert done.returncode == 0, done.stderr
    on_one, on_two = map(int, done.stdout.split())
    assert max(on_one, on_two) < 2**20
