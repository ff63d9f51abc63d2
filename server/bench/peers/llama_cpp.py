"""llama.cpp for this machine: its sources, built once in a cache folder, and its programs.

The sources are those that the llama-cpp-python package carries, of one version whose file is known
by its checksum. Built as a user would who wants speed: Release, for the processor at hand.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.bench.server import free_port

VERSION = "0.3.36"
_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_PROGRAMS = ("llama-batched-bench", "llama-bench", "llama-server")
_SETTINGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
_START_S = 60.0
_RUN_S = 600.0  # longer than any of its measurements takes


class PeerError(Exception):
    """Why llama.cpp has no figure, in one line."""


@dataclass(frozen=True, slots=True)
class BatchSpeed:
    """Tokens per second of a batch's prompts and of its decoding."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """``source`` is the folder of its sources, ``programs`` of what was built."""

    source: Path
    programs: Path
    threads: int

    @property
    def gguf_package(self) -> Path:
        return self.source / "gguf-py"

    def batch_speed(self, model: Path, rows: int, prompt: int, output: int) -> BatchSpeed:
        """One measurement of ``rows`` sequences with prompts of their own, all in one process that
        has warmed up. Raises PeerError."""
        context = rows * (prompt + output)
        said = self._run(
            "llama-batched-bench",
            *("-m", str(model), "-c", str(context), "-b", "2048", "-ub", "512"),
            *("-npp", str(prompt), "-ntg", str(output), "-npl", str(rows)),
            *("--output-format", "jsonl"),
        )
        for line in said.splitlines():
            if line.startswith("{"):
                found = json.loads(line)
                return BatchSpeed(found["speed_pp"], found["speed_tg"])
        raise PeerError(f"llama-batched-bench gave no figure: {said[-300:]!r}")

    def facts(self, model: Path) -> dict[str, str]:
        """Its commit, how it was built, and what it runs on. Raises PeerError."""
        [found] = json.loads(
            self._run(
                "llama-bench",
                *("-m", str(model), "-p", "1", "-n", "0", "-r", "1", "-o", "json"),
            )
        )
        return {
            "llama.cpp": f"{found['build_commit']}, of llama-cpp-python {VERSION}",
            "its build": ", ".join(f"{name}={value}" for name, value in _SETTINGS.items()),
            "its backend": f"{found['backends']} on {found['cpu_info']}",
        }

    def system_line(self, model: Path) -> str:
        """What its server says of the instructions that it uses. Raises PeerError."""
        with subprocess.Popen(
            [*self.server_command(model, free_port(), 1, 64), "--verbosity", "4"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            killer = threading.Timer(_START_S, process.kill)
            killer.start()
            try:
                for line in process.stderr or ():
                    if "system_info" in line:
                        return line[line.index("system_info") :].strip()
            finally:
                killer.cancel()
                process.kill()
        raise PeerError("llama-server says nothing of its system")

    def server_command(self, model: Path, port: int, users: int, context: int) -> list[str]:
        """Serves ``users`` at once, each with ``context`` tokens, and keeps no prompt for later."""
        return [
            str(self.programs / "llama-server"),
            *("-m", str(model), "--host", "127.0.0.1", "--port", str(port)),
            *("-t", str(self.threads), "-np", str(users), "-c", str(users * context)),
            *("-b", "2048", "-ub", "512", "--no-kv-unified"),
            *("--cache-ram", "0", "--no-cache-prompt", "--no-webui"),
        ]

    def _run(self, program: str, *arguments: str) -> str:
        command = [str(self.programs / program), *arguments, "-t", str(self.threads)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_RUN_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(f"{program}: {error}") from error
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
            raise PeerError(f"{program} ended with exit code {done.returncode}: {last[0]}")
        return done.stdout


def build(cache: Path, threads: int) -> LlamaCpp:
    """What is there already is not built again. Raises PeerError."""
    source = _sources(cache)
    built = source.parents[1] / "build"
    programs = built / "bin"
    if not all((programs / name).is_file() for name in _PROGRAMS):
        cmake = _tool("cmake")
        settings = [f"-D{name}={value}" for name, value in _SETTINGS.items()]
        _make([cmake, "-S", str(source), "-B", str(built), *settings])
        _make([cmake, "--build", str(built), "-j", str(threads), "--target", *_PROGRAMS])
    return LlamaCpp(source, programs, threads)


def _sources(cache: Path) -> Path:
    """Downloads and unpacks them, unless they are there."""
    folder = cache / f"llama_cpp_python-{VERSION}"
    source = folder / "vendor" / "llama.cpp"
    if source.is_dir():
        return source
    archive = cache / f"llama_cpp_python-{VERSION}.tar.gz"
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _make(
            [
                *(sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(cache)),
                *("--no-binary", "llama-cpp-python", f"llama-cpp-python=={VERSION}"),
            ]
        )
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != _SHA256:
        raise PeerError(f"{archive} is not the file that is known: its SHA-256 is {found}")
    with tarfile.open(archive) as packed:
        packed.extractall(cache, filter="data")
    return source


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise PeerError(f"llama.cpp cannot be built: there is no {name} (pip install {name})")
    return found


def _make(command: Sequence[str]) -> None:
    """Its output is shown: it takes minutes."""
    print(" ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise PeerError(f"{command[0]} ended with exit code {done.returncode}")
