"""A load takes little more than what it loads: packed weights stand in for the read ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.memory.accounting import figures_of
from tests.native_kernels import needs_native
from weights.synthetic.checkpoint import write_checkpoint, write_tokenizer
from weights.synthetic.tiny_specs import tiny_llama

VOCAB = 30_009  # no whole number of tiles: a packed table cannot lie where the read one does


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize(("tied", "quantization"), [(True, "none"), (False, "int8")])
def test_a_load_takes_hardly_more_than_the_weights(
    tied: bool, quantization: str, tmp_path: Path
) -> None:
    """Of a checkpoint of 310 and one of 370 MB, of which a table of the vocabulary is 61."""
    spec = tiny_llama(
        hidden_size=1024,
        num_layers=14,
        num_query_heads=16,
        num_kv_heads=4,
        head_dim=64,
        intermediate_size=2048,
        vocab_size=VOCAB,
        tied=tied,
        parameter_dtype="bf16",
    )
    write_checkpoint(spec, tmp_path, seed=0, format="bf16", sharp=False)
    write_tokenizer(tmp_path, spec.vocab_size)
    found = figures_of("tests.memory.loading_peak", tmp_path, quantization, timeout=280)
    assert found["backend"] == "native"
    assert 0.98 * found["weights"] < found["peak"] < 1.15 * found["weights"]
