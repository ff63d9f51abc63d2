"""Scenarios and traces, well and badly formed; the facts in other servers' metrics."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.errors import ScenarioError
from loadtest.run import TracedWorkload
from loadtest.server.metric_names import DIALECTS
from loadtest.server.readings import server_side
from loadtest.server.scrape import ServerSeries, read_metrics
from loadtest.stats.measures import Estimate
from loadtest.stats.objectives import wilson
from loadtest.stats.search import Search
from loadtest.workload.requests import Workload
from loadtest.workload.scenario import Length, read_scenario
from loadtest.workload.trace import TraceRow, read_trace
from tests.loadtest.loads import SCENARIO, scenario


def changed(path: str, value: Any) -> dict[str, Any]:
    """The scenario with one value put at ``a.b``; requests' keys go by requests.b."""
    copy = {k: [dict(v[0])] if k == "requests" else _copy(v) for k, v in SCENARIO.items()}
    *parents, last = path.split(".")
    place: Any = copy
    for parent in parents:
        place = place.setdefault(parent, {})
        place = place[0] if isinstance(place, list) else place
    place[last] = value
    return copy


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("nme", "x", "nme: is not a key here; known: api, arrivals"),
        ("name", 7, "name: must be a text, not 7"),
        ("api", "images", 'api: is "images"; allowed: completions, chat'),
        ("arrivals.kind", "magic", "arrivals.kind"),
        ("arrivals.rate", 0, "arrivals.rate: is 0; allowed is 0.0001"),
        ("arrivals.rate", "fast", "arrivals.rate: must be a number"),
        ("arrivals.rate", True, "arrivals.rate: must be a number"),
        ("arrivals.cv", 2.0, "arrivals.cv: is not a key here"),
        ("run", {}, "run: needs seconds, requests or both"),
        ("run.requests", 0, "run.requests: is 0"),
        ("run.seconds", float("nan"), "run.seconds"),
        ("requests", [], "requests: needs at least one table"),
        ("requests.prompt_tokens", 0, "requests[0].prompt_tokens: is 0"),
        ("requests.prompt_tokens", {"low": 9, "high": 3}, "is 3, less than low 9"),
        ("requests.prompt_tokens", {"low": 9}, "requests[0].prompt_tokens.high: is missing"),
        ("requests.shared_prefix_tokens", 8, "the shortest prompt has 8"),
        ("requests.turns", 2, 'a conversation needs api = "chat"'),
        ("fields.max_tokens", 3, "fields.max_tokens: is set by the scenario's own keys"),
        ("fields.n", 2, "fields.n: must be 1"),
        ("objectives.ttfb", 1.0, "objectives.ttfb: is not a key here; known: e2e"),
        ("chaos.cancel", 1.5, "chaos.cancel: is 1.5; allowed is 0 to 1"),
        ("chaos", {"cancel": 0.6, "malformed": 0.6}, "chaos: shares add up to 1.2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_scenario_names_its_key(path: str, value: Any, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        read_scenario(changed(path, value), "file.toml")
    assert said in str(caught.value) and str(caught.value).startswith("file.toml: ")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "time,input\n1,2\n", "the head line lacks output"),
        ("a.csv", "time,input,output\n1,x,2\n", "a.csv:2: input is 'x'"),
        ("a.csv", "time,input,output\n2,1,1\n1,1,1\n", "request 2 is at 1 s, before"),
        ("a.csv", "time,input,output\n", "has no requests"),
        ("a.jsonl", '{"time": 0, "input": 1, "output": 1}\n[]\n', "a.jsonl:2: not a JSON object"),
        ("a.jsonl", '{"time": 0, "input": 1}\n', "a.jsonl:1: output is None"),
        ("a.csv", "time,input,output,prefix\n1,5,1,6\n", "prefix is '6'; allowed is 0 to 5"),
        ("a.jsonl", '{"time": 1e999, "input": 1, "output": 1}\n', "time is inf"),
    ],
)
def test_a_malformed_trace_names_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        read_trace(path)
    assert said in str(caught.value)


def test_both_forms_of_a_trace_say_the_same(tmp_path: Path) -> None:
    a, b = tmp_path / "a.csv", tmp_path / "b.jsonl"
    a.write_text("time,input,output,group\n0,5,6,g\n1.5,7,8,\n")
    b.write_text(
        '{"time": 0, "input": 5, "output": 6, "group": "g"}\n\n'
        '{"time": 1.5, "input": 7, "output": 8}\n'
    )
    assert read_trace(a) == read_trace(b)


def test_a_trace_s_groups_share_the_prefix_that_it_names() -> None:
    rows = (
        TraceRow(0.0, 9, 1, "a", 6),
        TraceRow(0.1, 8, 1, "b", 6),
        TraceRow(0.2, 12, 1, "a", 8),
        TraceRow(0.3, 7, 1),
        TraceRow(0.4, 7, 1),
    )
    prompts = [job.body["prompt"] for job in TracedWorkload(scenario(), "m", rows).jobs()]
    assert [len(prompt) for prompt in prompts] == [9, 8, 12, 7, 7]
    assert prompts[0][:6] == prompts[2][:6] != prompts[1][:6]
    assert prompts[0][6] != prompts[2][6] and prompts[3][:2] != prompts[4][:2]


def test_groups_of_a_trace_without_the_length_of_their_prefix_are_refused() -> None:
    with pytest.raises(ScenarioError, match="neither in a column prefix nor in the scenario"):
        TracedWorkload(scenario(), "m", (TraceRow(0.0, 9, 1, "a"),))


class TestWorkload:
    def test_prompts_of_ids_have_exactly_the_length_asked_for(self) -> None:
        one = scenario(requests=[{"prompt_tokens": {"low": 3, "high": 40}, "output_tokens": 2}])
        lengths = {len(Workload(one, "m").job(n).body["prompt"]) for n in range(300)}
        assert lengths == set(range(3, 41))

    def test_a_job_is_a_function_of_its_number_and_the_seed(self) -> None:
        forward = [Workload(scenario(), "m").job(n).body for n in range(5)]
        backward = [Workload(scenario(), "m").job(n).body for n in reversed(range(5))]
        assert forward == backward[::-1]
        assert Workload(scenario(seed=2), "m").job(0).body != forward[0]

    def test_a_group_s_prompts_share_their_prefix_and_no_more(self) -> None:
        kind = {
            "prompt_tokens": 30,
            "output_tokens": 1,
            "shared_prefix_tokens": 20,
            "prefix_groups": 3,
        }
        by_group: dict[int, list[list[int]]] = {}
        for number in range(60):
            job = Workload(scenario(requests=[kind]), "m").job(number)
            by_group.setdefault(job.group, []).append(job.body["prompt"])
        assert len(by_group) == 3
        prefixes = [{tuple(p[:20]) for p in prompts} for prompts in by_group.values()]
        assert all(len(found) == 1 for found in prefixes) and len(set.union(*prefixes)) == 3
        assert all(len({tuple(p[:21]) for p in ps}) > 1 for ps in by_group.values())

    def test_a_conversation_repeats_what_was_said(self) -> None:
        kind = {"prompt_tokens": 5, "output_tokens": 4, "turns": 3}
        work = Workload(scenario(api="chat", requests=[kind]), "m")
        first = work.job(0)
        second = work.next_turn(first, "an answer")
        said = second.body["messages"]
        assert said[:1] == first.body["messages"]
        assert said[1] == {"role": "assistant", "content": "an answer"}
        assert said[2]["role"] == "user" and second.turns_left == 1

    def test_lengths_have_the_law_that_they_name(self) -> None:
        draw, length = random.Random(1), Length("lognormal", 100, 400)
        values = sorted(length.draw(draw) for _ in range(20_000))
        assert values[10_000] == pytest.approx(100, rel=0.03)
        assert values[19_000] == pytest.approx(400, rel=0.06)


VLLM = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_waiting{model_name="m"} 2.0
vllm:kv_cache_usage_perc{model_name="m"} 0.25
vllm:generation_tokens_total{model_name="m"} 123.0
# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{le="0.3",model_name="m"} 8.0
vllm:request_queue_time_seconds_bucket{le="0.5",model_name="m"} 9.0
vllm:request_queue_time_seconds_bucket{le="+Inf",model_name="m"} 10.0
vllm:request_queue_time_seconds_sum{model_name="m"} 5.0
vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} what no parser reads
"""
LLAMA = "llamacpp:requests_processing 1\nllamacpp:tokens_predicted_total 5\n"


def test_each_server_s_names_give_the_same_facts() -> None:
    dialect, reading = read_metrics(VLLM, 1.0)
    assert dialect is not None and dialect.server == "vLLM"
    assert reading.gauges == {"requests_running": 3.0, "requests_waiting": 2.0, "kv_usage": 0.25}
    assert reading.counters == {"generation_tokens": 123.0, "queue_seconds": 5.0}
    assert reading.queue == {0.3: 8.0, 0.5: 9.0, float("inf"): 10.0}
    dialect, reading = read_metrics(LLAMA, 1.0)
    assert dialect is not None and dialect.server == "llama.cpp"
    assert reading.gauges == {"requests_running": 1.0}
    assert read_metrics("up 1\n", 0.0)[0] is None


def test_the_queue_is_what_came_between_two_readings() -> None:
    (_, first), (_, last) = read_metrics(VLLM, 1.0), read_metrics(VLLM, 9.0)
    grown = {0.3: 8.0 + 90.0, 0.5: 9.0 + 96.0, float("inf"): 10.0 + 100.0}
    last = replace(last, counters={**last.counters, "queue_seconds": 25.0}, queue=grown)
    side = server_side(ServerSeries("vLLM", [first, last]))
    assert side is not None and side.queue is not None
    assert side.queue.count == 100 and side.queue.mean == pytest.approx(0.2)
    assert side.queue.bounds == ((0.5, 0.3), (0.95, 0.5), (0.99, None))
    assert side.generation_tokens == 0.0 and side.preemptions is None
    assert server_side(ServerSeries("vLLM", [first])) is None


def test_slots_that_keep_their_prompts_are_no_leak() -> None:
    """llama.cpp's cells stay used after an answer; its running requests must not."""
    llama = next(dialect for dialect in DIALECTS if dialect.server == "llama.cpp")
    assert set(llama.baseline) == {"requests_running", "requests_waiting"}
    assert all(set(dialect.baseline) <= set(dialect.gauges) for dialect in DIALECTS)


class TestSearch:
    @pytest.mark.parametrize("limit", [0.7, 3.0, 5.5, 31.0, 100.0])
    def test_it_finds_the_limit_within_a_tenth(self, limit: float) -> None:
        search, runs = Search(0.5, 64.0), 0
        while (rate := search.next_rate) is not None:
            search.note(rate, wilson(1000 if rate <= limit else 500, 1000))
            runs += 1
        best = min(limit, 64.0)
        assert search.best is not None and best / 1.1 <= search.best <= best
        assert runs <= 12

    def test_a_server_that_holds_nothing(self) -> None:
        search = Search(1.0, 8.0)
        search.note(1.0, wilson(0, 10))
        assert search.next_rate is None and search.best is None
        assert "at no rate down to 1 requests/s" in search.verdict

    def test_a_verdict_says_when_the_intervals_do_not_part(self) -> None:
        search = Search(1.0, 8.0)
        search.note(1.0, Estimate(0.96, 0.8, 0.99))
        search.note(1.05, Estimate(0.94, 0.7, 0.98))
        assert "do not part" in search.verdict
