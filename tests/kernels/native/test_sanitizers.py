"""The C files with the checks of AddressSanitizer and UndefinedBehaviorSanitizer, once.

A library is built with them and found instead of the installed one, in a Python of its own, which
runs some of this folder's tests: whatever either finds ends that Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.native.compiling import ROOT, compile_objects

CHECKS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", *CHECKS)

RUN = """
import sys
from pathlib import Path
import pytest
from kernels.cpu.native import library
library.FILE = Path(sys.argv[1])
print("checked", library.levels_here())
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *sys.argv[2:]]))
"""

# Every kernel, at sizes that are no multiple of anything, in few seconds.
CHOSEN = " or ".join(
    (
        *("(any_size and (15-63 or 50-1030))", "products_are", "packed_table", "test_norms"),
        *("(every_head_size and (8- or 80))", "(windows and 65-1)", "(any_number and 1536)"),
        *("test_activations", "packed_and_scaled", "outside_a_table", "apart_tokens", "pinned"),
        "(normalised_and_turned and before)",
    )
)


def runtime_library(compiler: str, name: str) -> str | None:
    """Where the compiler has it; the compiler answers with the name alone where it has none."""
    asked = [compiler, f"-print-file-name={name}"]
    found = subprocess.run(asked, text=True, capture_output=True, check=True).stdout.strip()
    return found if Path(found).is_absolute() else None


def build(compiler: str, folder: Path) -> Path:
    objects = compile_objects(compiler, folder, extra=FLAGS)
    library = folder / "checked.so"
    link = [compiler, "-shared", *CHECKS, *objects, "-o", str(library), "-pthread", "-lm"]
    subprocess.run(link, check=True)
    return library


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_kernel_reads_or_writes_what_is_not_its_own(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc")
    checks = runtime_library(compiler, "libasan.so")
    if checks is None:
        pytest.skip("gcc has no libasan.so")
    library = build(compiler, tmp_path)
    environment = os.environ | {
        "LD_PRELOAD": checks,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=98",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(library), str(Path(__file__).parent), "-k", CHOSEN],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    said = ran.stdout[-4000:] + ran.stderr[-4000:]
    assert "checked (" in ran.stdout, said
    assert ran.returncode == 0 and " passed" in ran.stdout, said
    assert "Sanitizer" not in said and "runtime error" not in said, said
