"""A few steps of a tiny model for compute-sanitizer: ``python -m tests.gpu.sanitized_run``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # so that each tensor has its own bounds


def main() -> None:
    from server.execution.cuda_graphs import GraphMode
    from tests.gpu.gpu_engine import Model, run
    from weights.synthetic.checkpoint import write_checkpoint
    from weights.synthetic.tiny_specs import tiny_llama

    spec = tiny_llama(head_dim=64, hidden_size=256, num_layers=1, vocab_size=515)
    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(spec, Path(name), seed=0)
        model = Model(Path(name), spec.vocab_size)
        built = model.build(graphs=GraphMode.OFF, max_model_len=512, num_blocks=24)
        run(built, model.requests(2, max_tokens=3))


if __name__ == "__main__":
    main()
