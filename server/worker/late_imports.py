"""Parts of torch that an engine on a CPU does not use, imported when they are first asked for.

To import torch takes longer than to load a small model, and a third of that goes to what computes
shapes without values (``_meta_registrations``), traces programs (``export``), holds tensors of
unlike lengths (``nested``) and replaces operations of GPUs (``_native``). A module that is deferred
is there, by its name, file and place; its code runs when one of its attributes is wanted. So
nothing is missing, it only comes late.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

UNUSED_ON_A_CPU = ("torch._meta_registrations", "torch.export", "torch._native", "torch.nested")


def defer(names: Iterable[str]) -> None:
    """Modules of these names run when they are first used; to be called before they are loaded."""
    sys.meta_path.insert(0, _Finder(frozenset(names)))


class _Finder(MetaPathFinder):
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LateLoader(spec.loader)
        return spec


class _LateLoader(Loader):
    """Gives the module a ``__getattr__``, which is called for what it does not have yet."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def exec_module(self, module: ModuleType) -> None:
        def load(name: str) -> object:
            del module.__dict__["__getattr__"]  # first: the module's code asks for its own names
            self._loader.exec_module(module)
            return getattr(module, name)

        module.__dict__["__getattr__"] = load
