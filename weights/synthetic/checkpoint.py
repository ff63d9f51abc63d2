"""Random checkpoints of any spec, as real Hugging Face folders, for tests and benchmarks.

*Sharp* ones make wrong arithmetic visible. Three things are arranged (units: with unit-RMS inputs):

- attention scores have a standard deviation of several nats, so that a head looks at few tokens and
  a mask or a position that is off by one changes the answer;
- what the blocks add to the residual stream outweighs the token embedding, and the embedding is
  small: with a tied unembedding a stream that keeps its own token repeats that token for ever;
- norm weights are spread around 1 and biases are not small, so that dropping one is seen.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from weights import families
from weights.checkpoint.pieces import pieces
from weights.config.family import Source
from weights.config.writer import config_for
from weights.formats import get_format, tensor_bytes
from weights.inventory import Component, Parameter, inventory
from weights.spec import ModelSpec
from weights.synthetic.tiny_specs import tiny_bloom, tiny_gpt2, tiny_llama
from weights.synthetic.tokenizer import write_tokenizer

SPECS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bloom": tiny_bloom}

__all__ = ["SPECS", "tiny_bloom", "tiny_gpt2", "tiny_llama", "write_checkpoint", "write_tokenizer"]

_ALIGNMENT = 8  # of a file's first tensor, as the format's own writer pads

# Standard deviation of a matrix's output for inputs of unit RMS; of a table, the length of a row.
_GAINS = {
    Component.EMBEDDING: 3.0,
    Component.POSITION: 5.0,
    Component.QUERY: 2.1,
    Component.KEY: 2.1,
    Component.VALUE: 1.0,
    Component.OUTPUT: 1.5,
    Component.GATE: 2.0,
    Component.UP: 2.0,
    Component.DOWN: 1.0,
    Component.UNEMBEDDING: 3.0,
}
_BIAS = 0.1
_NORM_SPREAD = 0.2
_EMBEDDING_NORM = 0.15  # the root mean square of an embedding that is normalised
_PLAIN_DEVIATION = 0.02


def write_checkpoint(
    spec: ModelSpec,
    folder: Path,
    *,
    seed: int,
    format: str = "f32",
    sharp: bool = True,
    shards: int = 1,
) -> None:
    """Writes config.json, generation_config.json and the weights, in ``shards`` indexed files
    where more than one. The values depend on ``seed`` and the parameter's name alone.

    Raises ValueError where ``shards`` is below 1 or above the number of tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(spec, seed, sharp)
    if not 1 <= shards <= len(tensors):
        raise ValueError(f"shards must lie in 1..{len(tensors)}, not {shards}")
    _write_json(folder / "config.json", config_for(spec, format))
    eos = list(spec.eos_token_ids)
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": spec.bos_token_id, "eos_token_id": eos[0] if len(eos) == 1 else eos},
    )
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, format)
    else:
        _write_shards(folder, tensors, format, shards)


def _write_shards(folder: Path, tensors: Sequence[TensorToWrite], format: str, shards: int) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(shards):
        # Dealt like cards, so that tensors that are fused lie in different files.
        part = tensors[shard::shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        total += write_safetensors(folder / file, part, format)
        weight_map |= {tensor.name: file for tensor in part}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _tensors(spec: ModelSpec, seed: int, sharp: bool) -> list[TensorToWrite]:
    """The checkpoint's tensors under its own names, made when they are written."""
    parameters = {parameter.name: parameter for parameter in inventory(spec)}
    tensors: list[TensorToWrite] = []
    for source in families.by_name(spec.family).sources:
        layers = range(spec.num_layers) if "{i}" in source.pattern else range(1)
        for index in layers:
            names = [target.replace("{i}", str(index)) for target in source.targets]
            if all(name in parameters for name in names):
                parts = [parameters[name] for name in names]
                name = source.pattern.replace("{i}", str(index))
                tensors.append(_tensor(name, source, parts, seed, sharp))
    return tensors


def _tensor(
    name: str, source: Source, parts: Sequence[Parameter], seed: int, sharp: bool
) -> TensorToWrite:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def make() -> torch.Tensor:
        values = {part.name: _random(part, seed, sharp) for part in parts}
        fused = torch.cat(
            [values[one.parameter][one.at : one.at + one.size] for one in pieces(source, parts)]
        )
        return fused.t() if source.transposed else fused

    return TensorToWrite(name, shape[::-1] if source.transposed else shape, make)


def _random(parameter: Parameter, seed: int, sharp: bool) -> torch.Tensor:
    """float32 values of one parameter in its own shape."""
    digest = hashlib.sha256(f"{seed}:{parameter.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.randn(parameter.shape, generator=generator)
    if parameter.component is Component.NORM and parameter.name.endswith("weight"):
        values = values.mul_(_NORM_SPREAD if sharp else 0.0)
        return values.add_(0.0 if parameter.unit_offset else 1.0).mul_(_size(parameter, sharp))
    if not sharp:
        return values.mul_(_PLAIN_DEVIATION)
    if parameter.component is Component.DOWN:
        # An activation's mean is not zero; rows that add up to zero keep it out of the stream.
        values -= values.mean(dim=1, keepdim=True)
    return values.mul_(_deviation(parameter) * _size(parameter, sharp))


def _size(parameter: Parameter, sharp: bool) -> float:
    """A sharp embedding stays small where it is normalised."""
    return _EMBEDDING_NORM if sharp and parameter.name.startswith("embedding_norm.") else 1.0


def _deviation(parameter: Parameter) -> float:
    component = parameter.component
    if component in (Component.BIAS, Component.NORM):
        return _BIAS
    width = math.sqrt(parameter.shape[-1])
    return _GAINS[component] / width


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class TensorToWrite:
    name: str
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]  # float32, of ``shape``


def write_safetensors(path: Path, tensors: Sequence[TensorToWrite], format: str) -> int:
    """Writes ``tensors`` in order, converted to ``format``; returns the bytes of their data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor_bytes(tensor.shape, format)
        header[tensor.name] = {
            "dtype": get_format(format).safetensors_name,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    dtype = getattr(torch, get_format(format).torch_name)
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little"))
        stream.write(encoded)
        for tensor in tensors:
            data = tensor.make().to(dtype).contiguous()
            if tuple(data.shape) != tensor.shape:
                raise ValueError(f"{tensor.name}: made {tuple(data.shape)}, not {tensor.shape}")
            stream.write(data.view(-1).view(torch.uint8).numpy().data)
    return offset
