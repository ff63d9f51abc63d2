"""Which kernels the compile gate compiles, and what from: the cases of every module of kernels.gpu,
and the sources of each."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import triton
from triton.runtime.jit import JITCallable, JITFunction

import kernels.gpu
from kernels.gpu.compile_case import CompileCase

Cases = Callable[[int], Iterator[CompileCase]]


class Ungated(Exception):
    """Kernels that could ship without having been compiled; the text names them."""


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """One case for one architecture, by name: functions do not travel between processes."""

    module: str
    case: str
    arch: int

    def __str__(self) -> str:
        return f"{self.module.rpartition('.')[2]} {self.case} sm_{self.arch}"


def launcher_modules(package: ModuleType = kernels.gpu) -> list[str]:
    """The modules of ``package`` that import kernels of theirs, by full name."""
    prefix = f"{package.__name__}."
    found = pkgutil.walk_packages(package.__path__, prefix)
    return sorted(info.name for info in found if _launches(importlib.import_module(info.name)))


def _launches(module: ModuleType) -> bool:
    return hasattr(module, "compile_cases") or any(_launched(module))


def _launched(module: ModuleType) -> Iterator[JITFunction]:
    """The functions that ``module`` launches: f[grid](...), f a name or an attribute of one."""
    tree = ast.parse(Path(cast(str, module.__file__)).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            function = _resolve(module, node.func.value)
            if isinstance(function, JITFunction):
                yield function


def _resolve(module: ModuleType, node: ast.expr) -> object:
    if isinstance(node, ast.Name):
        return getattr(module, node.id, None)
    if isinstance(node, ast.Attribute):
        return getattr(_resolve(module, node.value), node.attr, None)
    return None


def cases_of(module_name: str, arch: int) -> dict[str, CompileCase]:
    """Name -> case. Raises Ungated where the module has none, or leaves a kernel out."""
    module = importlib.import_module(module_name)
    cases = cast(Cases | None, getattr(module, "compile_cases", None))
    if cases is None:
        raise Ungated(f"{module_name} launches kernels and has no compile_cases")
    by_name: dict[str, CompileCase] = {}
    for case in cases(arch):
        if case.name in by_name:
            raise Ungated(f"{module_name} has two cases named {case.name} for sm_{arch}")
        by_name[case.name] = case
    compiled = {case.fn.fn for case in by_name.values()}
    left_out = sorted(
        {kernel.fn.__name__ for kernel in _launched(module) if kernel.fn not in compiled}
    )
    if left_out:
        raise Ungated(f"{module_name} launches {', '.join(left_out)} without a case of it")
    return by_name


def representative(cases: dict[str, CompileCase]) -> dict[str, CompileCase]:
    """The first case of every kernel: what a smoke test compiles."""
    seen: dict[object, str] = {}
    for name, case in cases.items():
        seen.setdefault(case.fn.fn, name)
    return {name: cases[name] for name in seen.values()}


def sources_of(kernel: Any) -> list[tuple[str, str]]:
    """Names with texts: of ``kernel``, of the device functions that it calls however deep, and the
    values of the globals that they read. Triton's own stand for the version of Triton; its own key
    (``cache_key``) would depend on line numbers and on which kernel was looked at first."""
    found: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop()
        name = f"{function.__module__}.{function.__name__}"
        if name in found:
            continue
        found[name] = inspect.getsource(function.fn)
        for read, value in _globals_of(function):
            if isinstance(value, JITCallable):
                waiting.append(value)
            else:
                found[f"{name}: {read}"] = repr(value)
    return sorted(found.items())


def _globals_of(function: Any) -> Iterator[tuple[str, object]]:
    """The project's own names that the function reads, of its module or through another's."""
    names = _names(function.fn.__code__)
    outside = inspect.getclosurevars(function.fn).nonlocals
    scopes = [function.fn.__globals__ | outside]
    scopes += [vars(value) for name in names if _is_own(value := scopes[0].get(name))]
    for scope in scopes:
        for name in names:
            value = scope.get(name)
            if isinstance(value, JITCallable):
                if not value.__module__.startswith(f"{triton.__name__}."):
                    yield name, value
            elif isinstance(value, int | float | str | tuple | triton.language.constexpr):
                yield name, value


def _is_own(value: object) -> bool:
    return isinstance(value, ModuleType) and not value.__name__.startswith(triton.__name__)


def _names(code: Any) -> list[str]:
    inner = [constant for constant in code.co_consts if inspect.iscode(constant)]
    return sorted({*code.co_names, *code.co_freevars, *(n for c in inner for n in _names(c))})
