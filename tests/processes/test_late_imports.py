"""Modules that come late: there by name, and whole when they are first used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from server.worker.late_imports import UNUSED_ON_A_CPU

ROOT = Path(__file__).parents[2]


def python(code: str, *, path: Path = ROOT) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", f"from server.worker.late_imports import *\n{code}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{path}"},
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_late_module_runs_when_one_of_its_names_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "__init__.py").write_text("print('package')\n")
    (tmp_path / "late" / "part.py").write_text("print('part')\nVALUE = [__name__, VALUE_OF]\n")
    code = """
defer(["late.part"])
import late, sys
from late import part
import late.part as again
print(part is again is sys.modules["late.part"], part.__file__.endswith("part.py"))
part.VALUE_OF = 1
print(part.VALUE, again.VALUE)
print(hasattr(part, "none"))
"""
    told = "package\nTrue True\npart\n['late.part', 1] ['late.part', 1]\nFalse\n"
    assert python(code, path=tmp_path) == told


def test_an_engine_on_a_cpu_leaves_out_parts_of_torch_and_computes_the_same() -> None:
    """The list is of modules that there are: a version of torch without one would be slower."""
    code = """
defer(UNUSED_ON_A_CPU)
import sys
import server.worker.build
import torch
late = [name for name in UNUSED_ON_A_CPU if "__getattr__" in vars(sys.modules[name])]
print(late == list(UNUSED_ON_A_CPU), (torch.ones(2, 3) @ torch.ones(3, 2)).tolist())
print(torch.export.export.__name__)
"""
    assert python(code) == "True [[3.0, 3.0], [3.0, 3.0]]\nexport\n"
    assert UNUSED_ON_A_CPU
