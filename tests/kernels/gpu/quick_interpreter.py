"""Triton's interpreter without what it computes and throws away, or finds out again and again.

What kernels compute is untouched. Two thirds of an interpreted kernel's time went into

- looking through all of Triton's language for functions to replace, at every call of a device
  function, though the launch has replaced them;
- a check of every integer operation for overflow, in 64 bits, whose outcome is dropped:
  ``device_assert`` does nothing without ``debug``;
- describing the same shapes and types anew for every value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import Any


def install() -> None:
    from triton.language import core
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    _replace_functions_once_a_launch(interpreter)
    interpreter._get_np_dtype = _by_name(interpreter._get_np_dtype)
    _describe_shapes_once(core)


def _replace_functions_once_a_launch(interpreter: Any) -> None:
    """Of each set of the language's modules; a launch puts back what it replaced when it ends."""
    language = (interpreter.tl, interpreter.tl.core)
    replace, put_back = interpreter._patch_lang, interpreter._LangPatchScope.restore
    replaced: dict[tuple[bool, ...], Any] = {}

    @cache
    def visible(fn: Callable[..., Any]) -> tuple[bool, ...]:
        values = list(fn.__globals__.values())
        return tuple(any(value is module for value in values) for module in language)

    def patch_lang(fn: Callable[..., Any]) -> Any:
        modules = visible(fn)
        if modules not in replaced:
            replaced[modules] = replace(fn)
        return replaced[modules]

    def restore(scope: Any) -> None:
        replaced.clear()
        put_back(scope)

    interpreter._patch_lang = patch_lang
    interpreter._LangPatchScope.restore = restore


def _by_name(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """numpy's type of a Triton type, looked up by the name of what its elements are."""
    known: dict[str, Any] = {}

    def np_dtype(triton_type: Any) -> Any:
        name = triton_type.scalar.name
        if name not in known:
            known[name] = real(triton_type)
        return known[name]

    return np_dtype


def _describe_shapes_once(core: Any) -> None:
    describe = core.block_type.__init__

    @cache
    def described(*shape: int) -> tuple[Any, int, str]:
        block = core.block_type.__new__(core.block_type)
        describe(block, core.int1, list(shape))
        return block.shape, block.numel, str(block.shape)

    @cache
    def of_tensor(*shape: int) -> tuple[Any, Any]:
        sizes = [core.constexpr(size) for size in shape]
        return core.tuple(sizes), core.constexpr(math.prod(shape))

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        self.element_ty = element_ty
        self.shape, self.numel, words = described(*map(core._unwrap_if_constexpr, shape))
        self.name = f"<{words}, {element_ty}>"

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = of_tensor(*(type.shape if type.is_block() else ()))

    core.block_type.__init__ = block_type
    core.tensor.__init__ = tensor
