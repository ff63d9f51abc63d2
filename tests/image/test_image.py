"""The Dockerfile, really built and really run: read-only, without root, within a memory limit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernels.cpu.native.levels import default_level
from tests.e2e.server_process import free_port
from tests.image.container_engine import ContainerEngine
from tests.image.image_builds import QUIRE, Images
from tests.image.running import RunningQuire, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MEMORY_LIMIT = 1 << 30
MOST_IMAGE_BYTES = 1_200_000_000
MOST_LIBRARY_BYTES = 1 << 20
COMPILERS = "cc gcc g++ c++ clang tcc ld as make pip pip3"


@pytest.fixture(scope="module")
def quire(engine: ContainerEngine, images: Images) -> Iterator[RunningQuire]:
    running = RunningQuire(engine, "quire-alone", free_port())
    engine.podman(
        *("run", "--detach", "--name", running.name, "--publish", f"127.0.0.1:{running.port}:8000"),
        # Docker mounts nothing at /tmp: podman shall not either. There is no place to write.
        *("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL"),
        *("--security-opt=no-new-privileges", f"--memory={MEMORY_LIMIT}"),
        *("--env", "QUIRE_DRAIN_TIMEOUT=120", QUIRE),
    )
    running.wait_ready()
    yield running
    engine.podman("rm", "--force", "--time", "5", running.name)


def test_the_image_is_small(images: Images) -> None:
    print(f"the CPU image takes {images.quire_bytes:,} bytes")
    assert images.quire_bytes <= MOST_IMAGE_BYTES


def test_the_image_names_a_user_a_signal_and_a_health_check(quire: RunningQuire) -> None:
    assert quire.inspect("{{.Config.User}}") == "10001:10001"
    assert quire.inspect("{{.Config.StopSignal}}") == "15"
    assert "healthcheck.py" in quire.inspect("{{.Config.Healthcheck.Test}}")
    assert quire.inspect('{{index .Config.Labels "org.opencontainers.image.licenses"}}')


def test_it_is_nobody_with_nothing_to_build_with_and_nowhere_to_write(quire: RunningQuire) -> None:
    assert quire.sh("id -u; id -g").split() == ["10001", "10001"]
    assert quire.sh("grep CapEff /proc/1/status").split()[1].strip("0") == ""
    assert quire.sh(f"for c in {COMPILERS}; do command -v $c || true; done") == ""
    assert (
        quire.sh(
            "for d in / /tmp /app /cache /model; do touch $d/x 2>/dev/null && echo $d; done; true"
        )
        == ""
    )


def test_its_native_kernels_were_built_before(quire: RunningQuire) -> None:
    """For the best level of this machine; nothing is left of their compiler."""
    report = quire.logs()
    assert "backend       native" in report
    assert f"({default_level().upper()})" in report
    (size,) = quire.sh("stat -c %s /app/kernels/cpu/native/quire_cpu.so").split()
    assert int(size) < MOST_LIBRARY_BYTES
    assert quire.sh("find / -xdev -iname '*ziglang*' 2>/dev/null; ls -d /app/build || true") == ""


def test_it_serves_a_completion_and_is_healthy(quire: RunningQuire) -> None:
    answer = quire.complete(prompt="def add(a, b):", max_tokens=24, temperature=0)
    assert (
        answer["usage"]["completion_tokens"] == 24
        or answer["choices"][0]["finish_reason"] == "stop"
    )
    assert answer["choices"][0]["text"].strip()
    assert quire.is_healthy()


def test_the_memory_report_obeys_the_containers_limit(quire: RunningQuire) -> None:
    (device,) = quire.get("/memory").json()["devices"]
    assert device["total_bytes"] == MEMORY_LIMIT
    assert sum(kind["bytes"] for kind in device["kinds"].values()) == MEMORY_LIMIT
    assert device["kinds"]["kv_cache"]["bytes"] < MEMORY_LIMIT / 2


def test_process_1_starts_a_dead_engine_again_and_leaves_no_zombie(quire: RunningQuire) -> None:
    engine_pid = quire.pid_of("server.worker")
    assert quire.processes()[1][1].endswith("quire serve")
    quire.sh(f"kill -9 {engine_pid}")
    wait_until("the engine's death is noticed", lambda: not quire.is_ready(), 30)
    quire.wait_ready()
    assert quire.pid_of("server.worker") != engine_pid
    assert "quire_engine_restarts_total 1.0" in quire.get("/metrics").text
    assert [state for state, _ in quire.processes().values() if state == "Z"] == []


def test_sigterm_to_process_1_drains_and_exits_0(quire: RunningQuire) -> None:
    """The last one here: afterwards nothing runs. A stream in progress is completed."""
    chunks = quire.stream(prompt="def add(a, b):", max_tokens=300, ignore_eos=True, seed=1)
    first = next(chunks)
    quire.engine.podman("kill", "--signal", "TERM", quire.name)
    wait_until("draining", lambda: quire.get("/ready").status_code == 503, 20)
    assert quire.inspect("{{.State.Status}}") == "running"
    *_, last = [first, *chunks]
    assert last["choices"][0]["finish_reason"] == "length"
    assert quire.engine.podman("wait", quire.name).strip() == "0"
    assert "draining 1 open requests" in quire.logs()
