"""The comparison with llama.cpp: its rounds, record and client. The peer itself is not here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from kernels.bench.cpu.limits import CpuLimits
from server.bench.peers import command, gguf_files, llama_cpp, models, row
from server.bench.peers.http_load import ask_together, prompts
from server.bench.peers.llama_cpp import LlamaCpp, PeerError
from server.bench.peers.report import Report
from server.bench.peers.row import Bench, Comparison, NotServed, Pairs, Row, quantization_of
from server.memory.backends.native_cpu import NATIVE
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import tiny_gpt2, tiny_llama

LIMITS = CpuLimits({"torch.sum": 20e9}, 100e9)
FACTS = {"processor": "one"}
LLAMA = LlamaCpp(Path("sources"), Path("programs"), 2)


def bench(folder: Path, rounds: int = 5) -> Bench:
    return Bench(folder, 2, rounds, LLAMA, LIMITS)


def pairs(ours: list[float], theirs: list[float]) -> Pairs:
    return Pairs(ours, theirs)


def test_a_ratio_above_1_is_ours_whichever_way_a_figure_is_read() -> None:
    rate = pairs([30, 20, 40], [20, 20, 10]).comparison("rate", "tokens/s")
    wait = pairs([1.0, 2.0], [2.0, 2.0]).comparison("wait", "s", more_is_better=False)
    assert rate.ratio is not None and wait.ratio is not None
    assert (rate.ours.median, rate.ratio.median, rate.ratio.max, rate.rounds) == (30, 1.5, 4, 3)
    assert (wait.ratio.min, wait.ratio.max) == (1, 2)
    alone = pairs([1.0], []).comparison("alone", "%")
    assert alone.peer is None and alone.ratio is None


def test_rounds_end_with_the_rows_time_and_there_is_always_one(tmp_path: Path) -> None:
    asked = bench(tmp_path, 3)
    assert list(asked.rounds()) == [0, 1, 2]
    asked.deadline = time.monotonic()
    assert list(asked.rounds()) == [0]


def rows_that_fail() -> list[Row]:
    def fail(error: BaseException) -> Row:
        def run(_: Bench) -> list[Comparison]:
            raise error

        return Row(type(error).__name__, run)

    found = pairs([10], [5]).comparison("decode", "tokens/s", "fast", {"of reading": 0.5})
    return [
        fail(NotServed("not yet")),
        fail(PeerError("no figure")),
        fail(SystemExit("the server ended with exit code 1")),
        Row("works", lambda _: [found]),
    ]


def test_a_row_that_fails_costs_the_others_nothing_and_is_told_of(tmp_path: Path) -> None:
    report = Report(
        tmp_path / "results", {"commit": "abc"}, LIMITS, recorded={"decode": 6.0}, facts=FACTS
    )
    command.run(rows_that_fail(), bench(tmp_path), report, 60)
    [one] = report.found
    assert one.name == "decode"
    assert list(report.missing) == ["NotServed", "PeerError", "SystemExit"]
    [void] = report.void  # 5 is more than 15 % below 6
    assert "5.0" in void and "6.0" in void
    kept = {path.suffix: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert set(kept) == {".json", ".md"}
    assert json.loads(kept[".json"])["rows"][0]["ratio"]["median"] == 2
    for words in ("| decode | tokens/s | 10.0", "50% of reading", "not yet", void, "- commit: abc"):
        assert words in kept[".md"]


def test_a_row_that_the_time_does_not_reach_is_told_of(tmp_path: Path) -> None:
    report = Report(None, {}, LIMITS, recorded={}, facts=FACTS)
    command.run(rows_that_fail(), bench(tmp_path), report, 0)
    assert set(report.missing.values()) == {"the time is over"}
    assert not report.found


def test_int8_has_no_figure_until_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantization_of("bf16") is None
    without = replace(NATIVE, quantisations=(), suggested_quantisations=())
    monkeypatch.setattr(row, "NATIVE", without)
    with pytest.raises(NotServed, match="int8"):
        quantization_of("int8")
    monkeypatch.setattr(row, "NATIVE", replace(without, quantisations=("int8",)))
    assert quantization_of("int8") == "int8"


def test_every_row_has_a_name_of_its_own() -> None:
    names = [one.name for one in command.all_rows()]
    assert len(set(names)) == len(names)


# -- the client --------------------------------------------------------------------------------


@contextmanager
def server(tokens_said: int) -> Iterator[int]:
    """Streams three chunks to each request, the second without text, and counts ``tokens_said``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            for text in ("a", "", "b"):
                self._say({"choices": [{"text": text}], "usage": None})
            self._say({"choices": [], "usage": {"completion_tokens": tokens_said}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _say(self, chunk: object) -> None:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        def log_message(self, *_: object) -> None:
            """Nothing: a test's output is its own."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield serving.server_address[1]
        finally:
            serving.shutdown()
            thread.join()


def test_requests_start_together_and_each_is_timed() -> None:
    with server(tokens_said=4) as port:
        found = ask_together(port, prompts(3, 5, 100, seed=0), 4)
    assert found.tokens == 12
    assert len(found.first) == len(found.gaps) == 3
    assert 0 < found.median_first <= found.seconds


def test_an_answer_that_is_too_short_is_no_figure() -> None:
    with server(tokens_said=3) as port, pytest.raises(ValueError, match="3 tokens came of 4"):
        ask_together(port, prompts(2, 5, 100, seed=0), 4)


def test_a_server_that_is_not_there_is_an_error_and_no_wait() -> None:
    with server(4) as port:
        pass
    with pytest.raises(OSError):
        ask_together(port, prompts(2, 5, 100, seed=0), 4)


# -- llama.cpp's programs ----------------------------------------------------------------------


def programs(folder: Path, script: str) -> LlamaCpp:
    """Each of them is ``script``."""
    for name in ("llama-batched-bench", "llama-bench", "llama-server"):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return LlamaCpp(folder, folder, 2)


def test_a_batchs_speed_is_read_from_what_llama_cpp_says(tmp_path: Path) -> None:
    said = """echo loading; echo '{"speed_pp": 20.5, "speed_tg": 7.25}'"""
    found = programs(tmp_path, said).batch_speed(Path("m.gguf"), 8, 64, 32)
    assert (found.prefill, found.decode) == (20.5, 7.25)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo no model >&2; exit 3", "exit code 3: no model"),
        ("echo nothing", "no figure"),
    ],
)
def test_a_program_that_gives_no_figure_is_an_error(
    script: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(PeerError, match=words):
        programs(tmp_path, script).batch_speed(Path("m.gguf"), 1, 8, 8)


def test_its_servers_system_line_is_kept(tmp_path: Path) -> None:
    said = "echo '0.1 I system_info: n_threads = 2 | AVX2 = 1 |' >&2; exec sleep 60"
    line = programs(tmp_path, said).system_line(Path("m.gguf"))
    assert line == "system_info: n_threads = 2 | AVX2 = 1 |"
    with pytest.raises(PeerError, match="nothing of its system"):
        programs(tmp_path, "exit 1").system_line(Path("m.gguf"))


def test_sources_that_are_not_the_known_ones_are_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / f"llama_cpp_python-{llama_cpp.VERSION}.tar.gz").write_bytes(b"other")
    with pytest.raises(PeerError, match="SHA-256"):
        llama_cpp.build(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 1


# -- GGUF --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "name", "wanted"),
    [
        (tiny_llama(), "model.layers.3.self_attn.q_proj.weight", "blk.3.attn_q.weight"),
        (tiny_llama(), "model.norm.weight", "output_norm.weight"),
        (tiny_gpt2(), "h.11.mlp.c_proj.bias", "blk.11.ffn_down.bias"),
        (tiny_gpt2(), "transformer.wte.weight", "token_embd.weight"),
    ],
)
def test_tensors_have_their_names_in_gguf(spec: ModelSpec, name: str, wanted: str) -> None:
    assert gguf_files._named(name, spec) == wanted


def test_a_tensor_that_gguf_has_no_name_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lm_tail\.weight"):
        gguf_files._named("lm_tail.weight", tiny_llama())


def test_pairs_of_a_head_that_turn_together_lie_side_by_side() -> None:
    spec = tiny_llama()
    heads = spec.attention.num_query_heads
    dim = spec.attention.head_dim
    rows = torch.arange(heads * dim).view(-1, 1).float()
    got = gguf_files._laid_out("model.layers.0.self_attn.q_proj.weight", rows, spec)
    assert got[:4, 0].tolist() == [0, dim // 2, 1, dim // 2 + 1]
    other = gguf_files._laid_out("model.layers.0.self_attn.v_proj.weight", rows, spec)
    assert torch.equal(other, rows)


def test_a_models_folder_is_written_once(tmp_path: Path) -> None:
    made: list[ModelSpec] = []

    def make() -> ModelSpec:
        made.append(tiny_llama(num_layers=1))
        return made[-1]

    model = models.BenchModel("T", "tiny", make)
    first = model.folder(tmp_path)
    assert model.folder(tmp_path) == first
    assert len(made) == 1
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in first.iterdir()
    }
