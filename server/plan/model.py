"""The model that is planned: a preset, a shape of the user's own, or a checkpoint folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.config import DEMO_MODEL_NAME
from server.errors import StartupError
from server.option_table import DEMO_MODEL_DIR
from server.placement import refuse_on_gpu
from server.served_features import unserved_features
from weights import families
from weights.checkpoint import CONFIG_FILE, open_checkpoint, read_config
from weights.errors import CheckpointError
from weights.matching import match
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
    if name is not None and shape is not None:
        raise StartupError(f"{name} and --shape {shape}: give one of them")
    if name is not None and Path(name).is_file():
        raise StartupError(f"{name} is a file: a shape is given with --shape {name}")
    try:
        if shape is not None:
            return _own_shape(Path(shape))
        if name is None or Path(name).is_dir():
            return _folder(Path(name or model_dir))
        preset = find_preset(name)
    except CheckpointError as error:
        raise StartupError(str(error)) from error
    return PlannedModel(preset.name, preset.spec, preset.spec.parameter_dtype, preset.source)


def not_served(spec: ModelSpec, *, on_gpu: bool) -> tuple[str, ...]:
    """Why ``quire serve`` could not serve this model there; () where it could."""
    features = unserved_features(spec)
    if features:
        return (
            f"not served yet, a plan alone: the engine lacks {', '.join(features)}; activations "
            "are planned as those of a block that is served",
        )
    if on_gpu:
        try:
            refuse_on_gpu(spec)
        except StartupError as error:
            return (f"not served there yet, a plan alone: {error}",)
    return ()


def _own_shape(path: Path) -> PlannedModel:
    document = read_document(path)
    spec = shape_spec(document, str(path))
    source = str(document.get("source", path))
    return PlannedModel(path.stem, spec, spec.parameter_dtype, source)


def _folder(folder: Path) -> PlannedModel:
    """From config.json and, where there are any, the headers of the weights' files."""
    whole = folder.resolve()
    name = DEMO_MODEL_NAME if whole == DEMO_MODEL_DIR else whole.name
    try:
        if not any(folder.glob("*.safetensors*")):
            config = read_config(folder)
            spec = families.resolve(config).spec(config)
            note = (
                f"no weights in the folder: the shape is {CONFIG_FILE}'s, checked against no file"
            )
            return PlannedModel(name, spec, spec.parameter_dtype, CONFIG_FILE, (note,))
        checkpoint = open_checkpoint(folder)
        family = families.resolve(checkpoint.config)
        spec = family.spec(checkpoint.config)
        match(checkpoint, family, spec)
    except CheckpointError as error:
        raise StartupError(f"{folder}: {error}") from error
    stored = checkpoint.parameter_format or spec.parameter_dtype
    return PlannedModel(name, spec, stored, f"{CONFIG_FILE} and the headers of the weights")
