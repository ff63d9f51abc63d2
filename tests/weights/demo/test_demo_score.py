"""The scorer: windows, the protocol over HTTP, and the exit status."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from weights.demo import score
from weights.demo.checkpoint import load_exported
from weights.demo.corpus import Document, read_heldout
from weights.demo.windows import Window, bits_per_byte, windows, xz_bits_per_byte

TEXT = "import os\n\n\ndef main():\n    print(os.getcwd())\n" * 12


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 12, 13, 100])
def test_windows_score_each_token_but_the_first_once(count: int) -> None:
    ids = list(range(count))
    scored: list[int] = []
    for window in windows(ids, 8, 4):
        assert len(window.ids) <= 8
        assert window.first_scored >= 1
        scored += window.ids[window.first_scored :]
    assert scored == ids[1:]


def test_later_windows_keep_their_context() -> None:
    assert [w.first_scored for w in windows(range(20), 8, 4)] == [1, 4, 4, 4]


@pytest.mark.parametrize(("length", "stride"), [(8, 0), (8, 8), (1, 1)])
def test_bad_strides_are_refused(length: int, stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        list(windows([1, 2, 3], length, stride))


def test_figures() -> None:
    assert bits_per_byte(math.log(2) * 30, 20) == pytest.approx(1.5)
    files = [document.text.encode() for document in read_heldout()]
    assert 1.6 < xz_bits_per_byte(files) < 1.8


@pytest.mark.parametrize(
    "values",
    [[-1.0, -1.0, -1.0], [None, -1.0], [None, -1.0, None], [None, -1.0, math.nan], []],
)
def test_answers_that_do_not_fit_are_refused(values: list[float | None]) -> None:
    answer: dict[str, object] = {"choices": [{"logprobs": {"token_logprobs": values}}]}
    with pytest.raises(ValueError, match="log-probabilities for 3 tokens"):
        score.token_logprobs(answer, 3)


class Handler(BaseHTTPRequestHandler):
    """The least server that speaks the protocol, over the trainer's model."""

    model = load_exported(score.CHECKPOINT)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "demo"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wanted = {"model": "demo", "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0}
        if self.path != "/v1/completions" or {k: body.get(k) for k in wanted} != wanted:
            self.answer({"error": "not the agreed request"})
            return
        ids = torch.tensor([body["prompt"]])
        with torch.no_grad():
            logprobs = self.model(ids)[0, :-1].log_softmax(-1)
        values = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
        self.answer({"choices": [{"logprobs": {"token_logprobs": [None, *values]}}]})


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def figure(lines: str) -> float:
    return float(lines.split("model: ")[1].split()[0])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["score", "--window", "128", "--stride", "64", *arguments])
    return score.main()


def test_served_and_offline_figures_agree(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score, "read_heldout", lambda: (Document("a.py", TEXT),))
    run(monkeypatch, "--url", url)
    served = figure(capsys.readouterr().out)
    run(monkeypatch, "--offline")
    assert served == pytest.approx(figure(capsys.readouterr().out), abs=2e-4)


@pytest.mark.parametrize(("xz", "status"), [(99.0, 0), (0.0, 1)])
def test_the_exit_status_says_who_won(
    xz: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "read_heldout", lambda: (Document("a.py", TEXT),))
    monkeypatch.setattr(score, "xz_bits_per_byte", lambda files: xz)
    assert run(monkeypatch, "--offline") == status


def test_a_window_of_the_shipped_model_is_scored() -> None:
    nats = score.offline(score.CHECKPOINT)(Window([0, 500, 600], 1))
    assert math.isfinite(nats)
    assert nats > 0


def test_other_urls_are_refused() -> None:
    with pytest.raises(ValueError, match="http"):
        score.ask("file:///etc/hosts", None, 1.0)
