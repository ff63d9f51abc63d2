"""The checkpoints that every engine is measured on, made once in a cache folder.

Random weights: speed depends on no value. The same weights lie as safetensors for us and as GGUF
for llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from server.bench.engine import DEMO
from server.bench.peers.gguf_files import write_gguf
from server.bench.shapes import CPU_POSITIONS, shapes
from weights.spec import ModelSpec, RopeScaling
from weights.synthetic.checkpoint import write_checkpoint, write_tokenizer

STORED = "bf16"  # of the folders; what is served and the GGUF files are made from it


@dataclass(frozen=True, slots=True)
class BenchModel:
    """``name`` is what a row calls it; ``spec`` is None for a folder that is there already."""

    name: str
    title: str
    make: Callable[[], ModelSpec] | None
    folder_if_there: Path | None = None

    def folder(self, cache: Path) -> Path:
        """Of the checkpoint, which is written if it is not there."""
        if self.make is None:
            if self.folder_if_there is None:
                raise ValueError(f"{self.name} has neither a shape nor a folder")
            return self.folder_if_there
        folder = cache / "models" / self.name
        if not folder.is_dir():
            spec = self.make()
            draft = folder.with_name(f"{self.name}.partial")
            write_checkpoint(spec, draft, seed=0, format=STORED, sharp=False)
            write_tokenizer(draft, spec.vocab_size)
            draft.replace(folder)
        return folder

    def gguf(self, cache: Path, format: str, gguf_package: Path) -> Path:
        """The same weights as a GGUF file in ``format``, written if it is not there."""
        path = cache / "models" / f"{self.name}-{format}.gguf"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".partial")
            write_gguf(self.folder(cache), draft, format, gguf_package)
            draft.replace(path)
        return path


def _gpt2() -> ModelSpec:
    """With positions for a prompt of 1,024 tokens and its answer."""
    return replace(shapes()["gpt2"], max_positions=CPU_POSITIONS)


def _llama(name: str) -> ModelSpec:
    """With plain angles: they cost the same, and need no table of their own in a GGUF file."""
    spec = shapes()[name]
    return replace(spec, rope=replace(spec.rope, scaling=RopeScaling.NONE))


MODELS = {
    model.name: model
    for model in (
        BenchModel("S", "GPT-2 shape, 124 M", _gpt2),
        BenchModel("M", "Llama with Qwen2.5-0.5B's sizes", lambda: _llama("llama-0.5b")),
        BenchModel("L", "Llama-3.2-1B shape", lambda: _llama("llama-1b")),
        BenchModel("demo", "the shipped model", None, DEMO),
    )
}
