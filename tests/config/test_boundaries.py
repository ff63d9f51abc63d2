"""What each part may load, seen in a fresh interpreter; and who may read the environment."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.memory.backends.registry import backends

ROOT = Path(__file__).parents[2]
TORCH_FREE = [
    *("weights.spec", "weights.families", "weights.inventory", "weights.formats"),
    *(
        "weights.checkpoint.folder",
        "server.engine.core",
        "server.client.supervisor",
        "server.client.ipc",
    ),
    *("server.api.app", "server.text.tokenizer", "server.text.chat_template"),
    *(
        "server.output.processor",
        "server.cli",
        "server.memory.layout",
        "server.memory.planner.planner",
    ),
    *(
        "server.memory.report.tree",
        "server.app.bootstrap",
        "server.app.api_process",
        "server.worker.__main__",
    ),
    *(
        "server.plan_cli.command",
        "weights.presets",
        "weights.tensor_parallel",
        "weights.checkpoint.matching",
    ),
]
STANDARD_ONLY = ["server.engine.core", "server.metrics.stats"]
AND_PLAIN_WEIGHTS = ["server.config.server_config", "server.cli", "server.entry"]


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return {name.split(".")[0] for name in result.stdout.splitlines()[-1].split()}


def foreign_modules_after(statement: str) -> set[str]:
    """Those of no standard library that an interpreter does not start with."""
    loaded = modules_after(statement) - modules_after("pass")
    return {name for name in loaded if not name.startswith("_")} - sys.stdlib_module_names


def test_torch_free_modules_load_no_torch() -> None:
    assert not modules_after(f"import {', '.join(TORCH_FREE)}") & {"torch", "transformers"}


def test_standard_library_modules_load_nothing_else() -> None:
    assert foreign_modules_after(f"import {', '.join(STANDARD_ONLY)}") == {"server"}
    started = foreign_modules_after(f"import {', '.join(AND_PLAIN_WEIGHTS)}")
    assert started == {"server", "weights"}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["serve", "--help"], ["plan", "--help"]])
def test_help_is_quick_because_it_loads_the_standard_library_alone(arguments: list[str]) -> None:
    asked = f"""
from contextlib import suppress
from server.cli import main
with suppress(SystemExit):
    main({arguments})
"""
    assert foreign_modules_after(asked) == {"server", "weights"}


def test_the_bench_needs_no_web_package() -> None:
    loaded = modules_after("import server.bench.__main__")
    assert not loaded & {"fastapi", "uvicorn", "starlette", "prometheus_client", "msgspec"}


def test_only_the_config_reads_the_environment() -> None:
    readers = set()
    for path in [*ROOT.glob("server/**/*.py"), *ROOT.glob("kernels/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            imported = isinstance(node, ast.ImportFrom) and node.module == "os"
            if named or (imported and any("env" in alias.name for alias in node.names)):
                readers.add(str(path.relative_to(ROOT)))
    assert readers == {"server/config/server_config.py"}


def test_every_import_contract_names_modules_that_exist() -> None:
    """A contract over a module that is gone would keep itself for ever."""
    import tomllib

    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = document["tool"]["importlinter"]["contracts"]
    assert len(contracts) > 5
    for contract in contracts:
        keys = ("source_modules", "allowed_importers", "ancestors")
        named = [module for key in keys for module in contract.get(key, ())]
        assert named, contract["name"]
        for module in named:
            path = ROOT.joinpath(*module.split("."))
            assert path.is_dir() or path.with_suffix(".py").is_file(), module


@pytest.mark.parametrize("package", ["server", "weights", "deploy"])
def test_no_code_asks_for_a_device_by_name(package: str) -> None:
    """What follows from a backend stands in its record; kernels.dispatch alone compares types."""
    asks = re.compile(
        r"\bon_gpu\b|GPU_FAMILIES|device\.type\b|device_type [!=]="
        r"|backend(\.name)? [!=]= |isinstance\([^)]*Runner\b|[!=]= \"(cpu|cuda)\""
    )
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if asks.search(line)
    }
    assert not found


def test_no_code_but_a_backends_own_knows_which_backends_there_are() -> None:
    """Its record, the devices that open it, what reads a device's memory, and benchmarks of one.

    Otherwise no module imports what is a backend's own, and none has a name of one in it.
    """
    own = ("server/memory/backends/", "server/memory/accounting/", "server/bench/")
    own += ("server/execution/cpu_device.py", "server/execution/device.py")
    # The published devices are NVIDIA's; and a limit of processor time is no device.
    exempt = {"server/plan_cli/devices.py", "server/plan_cli/target.py"}
    exempt |= {"server/text/template_process.py", "server/cgroups.py"}
    names = {name for backend in backends() for name in (backend.name, backend.device)}
    folders = {backend.parts_at.partition(".parts")[0] for backend in backends()}
    found = set()
    for path in [*ROOT.glob("server/**/*.py"), *ROOT.glob("deploy/**/*.py")]:
        module = str(path.relative_to(ROOT))
        if module.startswith(own):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            imported = (isinstance(node, ast.ImportFrom) and node.module) or ""
            if imported.startswith(tuple(folders)):
                found.add(module)
            if isinstance(node, ast.Constant) and node.value in names:
                found.add(module)
    assert found == exempt
