"""Write and read the demo model: the Hugging Face folder, and the state of a run.

A helper of `weights.demo.train` and `weights.demo.score`, not run by itself. Tensors go
into safetensors files only; nothing here can run code from a file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from weights.demo.model import DemoModel, Shape
from weights.demo.optim import Optimiser
from weights.demo.tokenizer import END_OF_TEXT_ID, PADDING_ID, save_tokenizer

SHAPE_FIELDS = tuple(asdict(Shape()))


def model_config(shape: Shape) -> dict[str, object]:
    """Return what `config.json` holds."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "rope_scaling": None,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": PADDING_ID,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def generation_config() -> dict[str, object]:
    """Return what `generation_config.json` holds."""
    return {
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": PADDING_ID,
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def export(model: DemoModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the whole Hugging Face folder, weights in bfloat16."""
    save_tokenizer(tokenizer, folder, model.shape.max_position_embeddings)
    _write_json(folder / "config.json", model_config(model.shape))
    _write_json(folder / "generation_config.json", generation_config())
    weights = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def load_exported(folder: Path) -> DemoModel:
    """Read a Hugging Face folder into the trainer's model, computing in float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = DemoModel(Shape(**{field: config[field] for field in SHAPE_FIELDS}))
    weights = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval()


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    chunks: int = 0
    seconds: float = 0.0


def save_run(path: Path, model: DemoModel, optimiser: Optimiser, progress: Progress) -> None:
    """Save everything a run needs to go on, replacing the file before in one move."""
    tensors = {f"model/{k}": v.detach().contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"state/{k}": v.contiguous() for k, v in optimiser.state.items()}
    fresh = path.with_suffix(".new")
    save_file(tensors, str(fresh), metadata={k: str(v) for k, v in asdict(progress).items()})
    fresh.replace(path)


def load_run(path: Path, model: DemoModel, optimiser: Optimiser) -> Progress:
    """Take a run up where `save_run` left it."""
    tensors = load_file(str(path))
    with safe_open(str(path), framework="pt") as file:
        saved: dict[str, str] = file.metadata()
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "state": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    model.load_state_dict(parts["model"])
    optimiser.load(parts["state"])
    return Progress(int(saved["step"]), int(saved["chunks"]), float(saved["seconds"]))
