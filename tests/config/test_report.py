"""What the start-up report says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from starlette.routing import Route

from server.api.app import create_app
from server.config.server_config import resolve
from server.ipc.engine_info import EngineInfo
from server.startup.descriptors import ConnectionLimits
from server.startup.listener import address, bind
from server.startup.model_info import read_model
from server.startup.report import ReportInput, startup_report, version_report
from tests.api.api_fakes import FakeEngine, make_state
from tests.engine_configs import engine_config
from weights.spec import PositionKind

ALL_CONNECTIONS = ConnectionLimits(512, 256)


def report(
    *,
    kernel_cache: str | None = None,
    no_chat: str = "",
    host: str = "127.0.0.1",
    connections: ConnectionLimits = ALL_CONNECTIONS,
    position: PositionKind = PositionKind.ROTARY,
) -> str:
    config = resolve({"device": "cpu", "host": host}, {})
    engine = EngineInfo(
        weights={},
        weights_format="f32",
        load_seconds=0.5,
        ready_seconds=1.0,
        torch_version="2.13.0",
        num_threads=2,
        cpu_capability="AVX512",
        kernel_cache=kernel_cache,
    )
    model = read_model(config)
    return startup_report(
        ReportInput(
            config=config,
            model=replace(model, spec=replace(model.spec, position=position)),
            engine=engine,
            reading=None,
            defaults={},
            address="http://127.0.0.1:8000",
            no_chat=no_chat,
            seconds=1.5,
            connections=connections,
        )
    )


def test_it_says_how_tokens_are_placed() -> None:
    assert "none: ALiBi" in report(position=PositionKind.ALIBI)
    assert "none: learned positions" in report(position=PositionKind.LEARNED)
    assert "no scaling" in report()


def test_it_says_where_kernels_compiled_for_a_gpu_are_kept() -> None:
    told = report(kernel_cache="/var/kernels")
    assert "  GPU kernels   compiled ones are kept in /var/kernels\n" in told
    assert "kernels" not in report()


def test_it_begins_with_the_page() -> None:
    title, page, *_ = report().splitlines()
    assert title == "Quire serves quire-demo at http://127.0.0.1:8000"
    assert page.startswith("  open http://127.0.0.1:8000/ in a browser: ")
    assert "GET  / (web UI) /v1/models " in report()


def test_an_address_for_all_is_told_as_one_that_a_browser_can_open() -> None:
    assert "every address" not in report()
    assert "listens on every address of this machine (0.0.0.0), without" in report(host="0.0.0.0")
    for host, shown in (("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")):
        with bind(host, 0) as sock:
            assert address(sock) == f"http://{shown}:{sock.getsockname()[1]}"


def test_every_route_is_in_the_report() -> None:
    app = create_app(make_state(FakeEngine()))
    served = {route.path for route in app.routes if isinstance(route, Route)}
    lines = [line for line in report().splitlines() if line.startswith(("  GET ", "  POST "))]
    told = set(re.findall(r" (/\S*)", "\n".join(lines)))
    assert told == {path for path in served if "{" not in path and not path.startswith("/page/")}


def test_it_says_which_file_names_the_ids_that_end_an_answer() -> None:
    assert "  ends at ids   0 (generation_config.json)\n" in report()


def test_it_says_why_there_is_no_chat() -> None:
    assert "POST /v1/completions /v1/chat/completions\n" in report()
    assert "(no chat template: no /v1/chat/completions)" in report(no_chat="no chat template")


def test_the_version_says_the_device_and_its_guarantee() -> None:
    config = resolve({"device": "cpu", "backend": "torch", "dtype": "bfloat16"}, {})
    model = read_model(config)
    told = version_report(config, model)
    assert (told["device"], told["dtype"]) == ("cpu", "bf16")
    assert "--dtype float32 guarantees" in told["determinism"]

    config_there = engine_config(model.plan.config, backend="triton", batch_invariant=True)
    layout = replace(model.plan.layout, config=config_there)
    there = replace(model, plan=replace(model.plan, layout=layout))
    told = version_report(config, there)
    assert told["device"] == "cuda"
    assert "bit for bit" in told["determinism"]


def test_fewer_connections_than_asked_for_are_told_with_the_reason() -> None:
    assert "connections" not in report()
    few = ConnectionLimits(6, 2, "the limit of open files (ulimit -n) is 48")
    line = (
        "  connections   6 at once, and 2 for probes: the limit of open files (ulimit -n) is 48\n"
    )
    assert line in report(connections=few)


def test_it_says_why_dtype_auto_took_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "dtype auto" not in report()
    reason = "bfloat16 products take 3.0 x at 16 rows of float32's time here"
    monkeypatch.setattr(
        "server.startup.model_info.choose_dtype",
        lambda args, spec, stored, available: (replace(args, dtype="float32"), reason),
    )
    assert f"  dtype auto    {reason}\n" in report()
