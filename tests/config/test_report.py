"""What the start-up report says."""

from __future__ import annotations

from dataclasses import replace

from server.config import resolve
from server.engine_facts import EngineFacts
from server.model_facts import read_model
from server.report import ReportInput, startup_report, version_report


def report(*, kernel_cache: str | None = None, no_chat: str = "") -> str:
    config = resolve({"device": "cpu"}, {})
    engine = EngineFacts(
        weights={},
        weights_format="f32",
        load_seconds=0.5,
        ready_seconds=1.0,
        torch_version="2.13.0",
        num_threads=2,
        cpu_capability="AVX512",
        kernel_cache=kernel_cache,
    )
    return startup_report(
        ReportInput(
            config=config,
            model=read_model(config),
            engine=engine,
            reading={},
            defaults={},
            address="http://127.0.0.1:8000",
            no_chat=no_chat,
            seconds=1.5,
        )
    )


def test_it_says_where_kernels_compiled_for_a_gpu_are_kept() -> None:
    told = report(kernel_cache="/var/kernels")
    assert "  GPU kernels   compiled ones are kept in /var/kernels\n" in told
    assert "kernels" not in report()


def test_it_says_why_there_is_no_chat() -> None:
    assert "POST /v1/completions /v1/chat/completions\n" in report()
    assert "(no chat template: no /v1/chat/completions)" in report(no_chat="no chat template")


def test_the_version_tells_the_device_and_its_promise() -> None:
    config = resolve({"device": "cpu", "dtype": "bfloat16"}, {})
    model = read_model(config)
    told = version_report(config, model)
    assert (told["device"], told["dtype"]) == ("cpu", "bf16")
    assert "--dtype float32 promises" in told["determinism"]

    runner = replace(model.plan.runner, on_gpu=True, batch_invariant=True)
    layout = replace(model.plan.layout, config=runner)
    on_gpu = replace(model, plan=replace(model.plan, layout=layout))
    told = version_report(config, on_gpu)
    assert told["device"] == "cuda"
    assert "bit for bit" in told["determinism"]
