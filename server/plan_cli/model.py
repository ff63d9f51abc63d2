"""The model that is planned: a preset, a shape of the user's own, or a checkpoint folder."""

from __future__ import annotations

import errno
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.config.options import DEMO_MODEL_DIR
from server.config.server_config import DEMO_MODEL_NAME
from server.errors import StartupError
from server.memory.backends.record import Backend
from server.startup.placement import refuse_model
from server.startup.supported_models import unserved_features
from weights import families
from weights.checkpoint.folder import CONFIG_FILE, open_checkpoint, read_config, refuse_other_kinds
from weights.checkpoint.matching import match
from weights.config.family import Family
from weights.errors import CheckpointError
from weights.presets import find_preset
from weights.shapes import read_document, shape_spec
from weights.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """``stored`` is the format that its weights are published in; ``source`` says where the shape
    comes from. ``notes`` are what a reader of the plan must know."""

    name: str
    spec: ModelSpec
    stored: str
    source: str
    notes: tuple[str, ...] = ()


def find_model(name: str | None, shape: str | None, model_dir: str) -> PlannedModel:
    """``shape`` is a file, ``name`` a folder or a preset; without either, ``model_dir`` is planned.

    Raises StartupError naming the file, the key or the preset at fault.
    """
    # A variable that a script forgot to set would plan another model than was meant.
    for what, given in (("MODEL", name), ("--shape", shape)):
        if given is not None and not given.strip():
            raise StartupError(f"{what} is empty: name one, or leave it out")
    if name is not None and shape is not None:
        raise StartupError(f"{name} and --shape {shape}: give one of them")
    try:
        if shape is not None:
            return _own_shape(Path(shape))
        return _folder(Path(model_dir)) if name is None else _named(name)
    except CheckpointError as error:
        raise StartupError(str(error)) from error
    except OSError as error:
        raise StartupError(f"{shape or name or model_dir}: {error.strerror}") from error


def _named(name: str) -> PlannedModel:
    """A folder or a preset."""
    kind = _kind_of(Path(name))
    if stat.S_ISDIR(kind):
        return _folder(Path(name))
    if stat.S_ISREG(kind):
        raise StartupError(f"{name} is a file: give a shape with --shape {name}")
    preset = find_preset(name)
    notes = (preset.note,) if preset.note else ()
    return PlannedModel(preset.name, preset.spec, preset.spec.parameter_dtype, preset.source, notes)


def _kind_of(path: Path) -> int:
    """Its st_mode, 0 where there is nothing of that name. Raises OSError where it may not be
    looked at."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return 0
        raise


def not_served(spec: ModelSpec, backend: Backend) -> tuple[str, ...]:
    """Why ``quire serve`` could not serve this model there; () where it could."""
    features = unserved_features(spec)
    if features:
        return (
            f"plan only, not served yet: the engine lacks {', '.join(features)}; activations "
            "are planned as those of a block that is served",
        )
    if spec.family not in {family.name for family in families.FAMILIES}:
        return (f"plan only: quire serve reads no checkpoints of the family {spec.family}",)
    try:
        refuse_model(spec, backend)
    except StartupError as error:
        return (f"plan only, not served there yet: {error}",)
    return ()


def _own_shape(path: Path) -> PlannedModel:
    document = read_document(path)
    spec = shape_spec(document, str(path))
    source = str(document.get("source", path))
    notes = (str(document["note"]),) if "note" in document else ()
    return PlannedModel(path.stem, spec, spec.parameter_dtype, source, notes)


def _folder(folder: Path) -> PlannedModel:
    """From config.json and, where there are any, the headers of the weights' files."""
    whole = folder.resolve()
    name = DEMO_MODEL_NAME if whole == DEMO_MODEL_DIR else whole.name
    try:
        if not any(folder.glob("*.safetensors*")):
            refuse_other_kinds(folder)
            config = read_config(folder)
            spec = _family(config).spec(config)
            note = (
                f"no .safetensors file in the folder, which quire serve needs: the shape is "
                f"{CONFIG_FILE}'s, checked against no weights"
            )
            return PlannedModel(name, spec, spec.parameter_dtype, CONFIG_FILE, (note,))
        checkpoint = open_checkpoint(folder)
        family = _family(checkpoint.config)
        spec = family.spec(checkpoint.config)
        match(checkpoint, family, spec)
    except CheckpointError as error:
        raise StartupError(f"{folder}: {error}") from error
    stored = checkpoint.parameter_format or spec.parameter_dtype
    return PlannedModel(name, spec, stored, f"{CONFIG_FILE} and the headers of the weights")


def _family(config: Mapping[str, Any]) -> Family:
    try:
        return families.resolve(config)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; what is not served is planned from a preset (--list) or a --shape file"
        ) from error
