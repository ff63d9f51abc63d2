"""The forms of launches and of the compile gate's cases, found without a GPU, printed as JSON.

``python -m tests.kernels.launch_forms 80 90`` runs in a process of its own: one in which Triton
interprets kernels specialises nothing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from kernels.gate.cases import cases_of, launcher_modules
from kernels.gate.offline import source_of
from kernels.gate.offline_launch import form_of, recording_launches
from kernels.gpu.compile_case import CompileCase
from kernels.tuning import trying
from tests.kernels.attention_launches import ATTENTION
from tests.kernels.operation_launches import OPERATIONS


def launched(arch: int) -> list[dict[str, Any]]:
    with trying((), arch), recording_launches(arch) as forms:
        for family in (*OPERATIONS, *ATTENTION):
            for launch in family():
                launch(arch)
    return [asdict(form) for form in forms]


def compiled(case: CompileCase) -> dict[str, Any]:
    return asdict(form_of(source_of(case), case.num_warps, case.num_stages))


def specialised_integers(case: CompileCase) -> list[str]:
    return [
        parameter.name
        for parameter in case.fn.params
        if case.signature.get(parameter.name, "").startswith("i")
        and not parameter.do_not_specialize
    ]


def main(archs: list[int]) -> None:
    """Prints arch -> {"launched": [form], "cases": {name: form}, "specialised": {kernel: names}}:
    the last are integers whose value Triton would look at before it compiles."""
    found = {}
    for arch in archs:
        cases = [case for module in launcher_modules() for case in cases_of(module, arch).values()]
        found[arch] = {
            "launched": launched(arch),
            "cases": {case.name: compiled(case) for case in cases},
            "specialised": {case.fn.fn.__name__: specialised_integers(case) for case in cases},
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main([int(arch) for arch in sys.argv[1:]])
