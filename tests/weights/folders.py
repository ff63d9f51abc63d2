"""Makes checkpoint folders for tests, and takes them apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weights import families
from weights.checkpoint.folder import Checkpoint, open_checkpoint
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint, write_tokenizer
from weights.synthetic.tiny_specs import tiny_llama

Header = dict[str, Any]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00003.safetensors"
OTHER_SHARD = "model-00002-of-00003.safetensors"


def small_spec(*, tied: bool = False) -> ModelSpec:
    return tiny_llama(
        hidden_size=32, head_dim=8, num_layers=2, intermediate_size=48, vocab_size=300, tied=tied
    )


def write_good_folder(folder: Path, *, sharded: bool = False, tied: bool = False) -> None:
    """A complete folder that is served: config, weights, tokenizer."""
    write_checkpoint(small_spec(tied=tied), folder, seed=7, shards=3 if sharded else 1)
    write_tokenizer(folder, 300)


def opened(folder: Path) -> tuple[Checkpoint, ModelSpec]:
    checkpoint = open_checkpoint(folder)
    return checkpoint, families.resolve(checkpoint.config).spec(checkpoint.config)


def edit_json(folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / file
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_config(folder: Path, **changes: Any) -> None:
    """Sets keys of config.json; the value ``...`` removes one."""

    def change(config: dict[str, Any]) -> None:
        config.update(changes)
        for key, value in changes.items():
            if value is ...:
                del config[key]

    edit_json(folder, "config.json", change)


def read_parts(path: Path) -> tuple[Header, bytes]:
    """(header, data) of a safetensors file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_parts(path: Path, header: Header | bytes, data: bytes) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def edit_header(folder: Path, change: Callable[[Header], None], file: str = WEIGHTS) -> None:
    header, data = read_parts(folder / file)
    change(header)
    write_parts(folder / file, header, data)


def append_tensor(
    folder: Path, name: str, data: bytes, shape: list[int], dtype: str = "F32", file: str = WEIGHTS
) -> None:
    header, old = read_parts(folder / file)
    header[name] = {
        "dtype": dtype,
        "shape": shape,
        "data_offsets": [len(old), len(old) + len(data)],
    }
    write_parts(folder / file, header, old + data)


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    header, data = read_parts(folder / WEIGHTS)
    write_parts(folder / WEIGHTS, {rename(name): entry for name, entry in header.items()}, data)


def drop_last_tensor(folder: Path) -> str:
    """Removes the tensor that lies last in the file, and its bytes; returns its name."""
    header, data = read_parts(folder / WEIGHTS)
    names = [name for name in header if name != "__metadata__"]
    last = max(names, key=lambda name: header[name]["data_offsets"])
    begin = header.pop(last)["data_offsets"][0]
    write_parts(folder / WEIGHTS, header, data[:begin])
    return last
