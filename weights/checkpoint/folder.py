"""A checkpoint folder: what is in its files, checked, without reading a tensor.

Served folders hold config.json and either model.safetensors or model.safetensors.index.json with
the shards that it names. Pickles are refused by name: reading one runs code. Nothing outside the
folder is opened, except that the files of a Hugging Face hub cache are links into its blobs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weights.checkpoint.limits import (
    MAX_FILES,
    MAX_INDEX_BYTES,
    MAX_INDEX_VALUES,
    MAX_TENSORS,
    DescriptionBudget,
)
from weights.checkpoint.safetensors_header import TensorEntry, read_header
from weights.errors import CheckpointError
from weights.formats import from_safetensors
from weights.strict_json import MAX_JSON_VALUES, parse_object, shown

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Files that only a folder of another kind has, and what it is then.
_OTHER_KINDS = {
    ADAPTER_CONFIG_FILE: "an adapter, not a model; merge it into its base model, or serve the base "
    "model",
    "model_index.json": "a diffusion pipeline, which makes images; serve a language model",
}
_MAX_CONFIG_BYTES = 4 << 20
_OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf", ".onnx")

__all__ = ["Checkpoint", "CheckpointError", "TensorEntry", "open_checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``tensors`` maps a checkpoint's own names to where they lie; ``file_sizes`` are in bytes;
    ``weights_file`` is the single file or the index, for messages."""

    folder: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    file_sizes: Mapping[str, int]
    weights_file: str

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors in the files, those that will be skipped included."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def parameter_format(self) -> str | None:
        """The format that holds most bytes of the files; None where none could hold parameters."""
        totals: dict[str, int] = {}
        for entry in self.tensors.values():
            name = from_safetensors(entry.dtype)
            if name is not None:
                totals[name] = totals.get(name, 0) + entry.nbytes
        return max(totals, key=totals.__getitem__, default=None)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads and checks config, index and headers of ``folder``.

    Raises CheckpointError that names the file and, where there is one, the tensor.
    """
    _refuse_no_folder(folder)
    refuse_other_kinds(folder)
    config = read_json(folder, CONFIG_FILE, _MAX_CONFIG_BYTES)
    generation_config: dict[str, Any] = {}
    if _exists(folder / GENERATION_CONFIG_FILE):
        generation_config = read_json(folder, GENERATION_CONFIG_FILE, _MAX_CONFIG_BYTES)
    weights_file = _weights_file(folder)
    if weights_file == INDEX_FILE:
        tensors = _read_shards(folder)
    else:
        entries = read_header(inside(folder, WEIGHTS_FILE), WEIGHTS_FILE)
        tensors = {entry.name: entry for entry in entries}
    if not tensors:
        raise CheckpointError(f"{weights_file}: it has no tensors")
    files = dict.fromkeys(entry.file for entry in tensors.values())
    return Checkpoint(
        folder=folder,
        config=config,
        generation_config=generation_config,
        tensors=tensors,
        file_sizes={file: inside(folder, file).stat().st_size for file in files},
        weights_file=weights_file,
    )


def _refuse_no_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.is_symlink() and not folder.exists():
        raise CheckpointError(f"is a link to {_link_text(folder)}, which is not there")
    raise CheckpointError(
        "a file; give the folder that holds it" if folder.exists() else "no such folder"
    )


def refuse_dangling(folder: Path, files: Iterable[str]) -> None:
    """Raises CheckpointError for the first of ``files`` that is a link to nothing. A file that may
    be left out must not count as left out because its target is missing."""
    for file in files:
        if (folder / file).is_symlink() and not (folder / file).exists():
            inside(folder, file)


def refuse_other_kinds(folder: Path) -> None:
    """Raises CheckpointError, saying what it is, where the folder is of another kind altogether."""
    for file, problem in _OTHER_KINDS.items():
        if (folder / file).exists():
            raise CheckpointError(f"{file}: the folder holds {problem}")
    if not (folder / CONFIG_FILE).exists():
        gguf = next((one.name for one in sorted(folder.glob("*.gguf"))), None)
        if gguf is not None:
            raise CheckpointError(
                f"{shown(gguf)}: GGUF files are not served; serve the folder of {CONFIG_FILE} and "
                "safetensors that it was made from"
            )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, whatever else is there. Raises CheckpointError."""
    _refuse_no_folder(folder)
    return read_json(folder, CONFIG_FILE, _MAX_CONFIG_BYTES)


def read_json(
    folder: Path, file: str, max_bytes: int, max_values: int = MAX_JSON_VALUES
) -> dict[str, Any]:
    """The object in one of the folder's JSON files, of at most so many bytes and values."""
    path = inside(folder, file)
    if path.stat().st_size > max_bytes:
        raise CheckpointError(f"{file}: {path.stat().st_size} bytes; at most {max_bytes} are read")
    return parse_object(path.read_bytes(), f"{file}:", max_values)


def inside(folder: Path, file: str) -> Path:
    """The path of a plain file of ``folder``, links resolved.

    Raises CheckpointError where it is missing, no regular file, or leads out of the folder.
    """
    path = folder / file
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except FileNotFoundError:
        raise _missing(path, file) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be opened: {type(error).__name__}") from None
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":  # a hub cache: snapshots/REVISION -> blobs
        allowed.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(root) for root in allowed):
        raise CheckpointError(f"{file}: is a link that leads outside the folder")
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{file}: is not a regular file")
    if not os.access(target, os.R_OK):
        raise CheckpointError(f"{file}: may not be read by this user")
    return target


def _missing(path: Path, file: str) -> CheckpointError:
    if not path.is_symlink():
        return CheckpointError(f"{file}: the file is missing from the folder")
    target = _link_text(path)
    problem = f"{file}: is a link to {target}, which is not there"
    if "blobs" in Path(os.readlink(path)).parts:  # a hub cache: snapshots/REVISION -> blobs
        return CheckpointError(
            f"{problem}: a snapshot of the Hugging Face cache is nothing without the blobs beside "
            "it. Mount or copy the whole models--... folder and serve its snapshots/REVISION, or "
            "copy the snapshot with its links followed (cp -rL)"
        )
    return CheckpointError(f"{problem}: mount what it points to as well, or copy the file itself")


def _link_text(path: Path) -> str:
    return shown(os.readlink(path))


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _weights_file(folder: Path) -> str:
    """The single file or the index. Refuses both at once, and names what else there is."""
    single, index = _exists(folder / WEIGHTS_FILE), _exists(folder / INDEX_FILE)
    if single and index:
        raise CheckpointError(
            f"{WEIGHTS_FILE}: lies beside {INDEX_FILE}; keep the one that holds the model"
        )
    if single or index:
        return WEIGHTS_FILE if single else INDEX_FILE
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        if name.endswith(_OTHER_SUFFIXES):
            raise CheckpointError(
                f"{shown(name)}: is not served: convert to safetensors ({WEIGHTS_FILE})"
            )
    found = [shown(name) for name in names if name.endswith(".safetensors")][:4]
    raise CheckpointError(
        f"{WEIGHTS_FILE}: is missing from the folder, and so is {INDEX_FILE}"
        + (f"; found {', '.join(found)}" if found else "")
    )


def _read_shards(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of the shards that the index names, in the index's agreement."""
    weight_map = _weight_map(folder)
    files = dict.fromkeys(weight_map.values())
    if len(files) > MAX_FILES:
        raise CheckpointError(
            f"{INDEX_FILE}: names {len(files)} files; at most {MAX_FILES} are read"
        )
    tensors: dict[str, TensorEntry] = {}
    budget = DescriptionBudget()
    for file in files:
        for entry in read_header(inside(folder, file), file, budget):
            other = tensors.setdefault(entry.name, entry)
            if other is not entry:
                raise CheckpointError(f"{file}: tensor {shown(entry.name)} is also in {other.file}")
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(
                f"{INDEX_FILE}: says that {file} holds tensor {shown(name)}, but it does not"
            )
    for entry in tensors.values():
        if entry.name not in weight_map:
            raise CheckpointError(
                f"{entry.file}: tensor {shown(entry.name)} is not in {INDEX_FILE}"
            )
    return tensors


def _weight_map(folder: Path) -> dict[str, str]:
    index = read_json(folder, INDEX_FILE, MAX_INDEX_BYTES, MAX_INDEX_VALUES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE}: weight_map must be an object of tensor to file")
    if len(weight_map) > MAX_TENSORS:
        raise CheckpointError(
            f"{INDEX_FILE}: names {len(weight_map)} tensors; at most {MAX_TENSORS} are read"
        )
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{INDEX_FILE}: tensor {shown(name)}: {shown(str(file))} is not a .safetensors file"
            )
        if "/" in file or "\\" in file or "\0" in file:
            raise CheckpointError(
                f"{INDEX_FILE}: tensor {shown(name)}: {shown(file)} points outside the folder; "
                "a shard is named without any directory"
            )
    return weight_map
