"""One model on disk and one server process for the whole session; more where a test kills it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import MAX_BODY_BYTES, MAX_MODEL_LEN, VOCAB_SIZE, ServerProcess


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharp random llama with a byte-level tokenizer and a chat template."""
    from weights.synthetic.checkpoint import tiny_llama, write_checkpoint, write_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-random"
    spec = tiny_llama(vocab_size=VOCAB_SIZE, max_positions=MAX_MODEL_LEN)
    write_checkpoint(spec, folder, seed=7)
    write_tokenizer(folder, spec.vocab_size, chat_template=True)
    return folder


@pytest.fixture(scope="session")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server that every gentle test shares."""
    log = tmp_path_factory.mktemp("logs") / "shared.log"
    options = {
        "max-num-seqs": 16,
        "max-num-batched-tokens": 128,
        "max-body-size": MAX_BODY_BYTES,
        "api-memory": "128MiB",
    }
    with ServerProcess(model_dir, log, **options) as running:
        yield running


@pytest.fixture
def start(model_dir: Path, tmp_path: Path) -> Iterator[object]:
    """Starts servers that the test may harm; they are gone after it."""
    started: list[ServerProcess] = []

    def begin(**options: object) -> ServerProcess:
        one = ServerProcess(model_dir, tmp_path / f"server-{len(started)}.log", **options)
        started.append(one)
        one.wait_ready()
        return one

    yield begin
    for one in started:
        one.__exit__()
