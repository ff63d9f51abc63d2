"""A start that is stopped, refused, or begun without standard descriptors.

Signals are sent from inside, at the very import or call that is named: nothing is timed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.living import has_ended
from tests.weights.folders import edit_config, write_good_folder
from tests.weights.malformed import MUTATIONS

ROOT = Path(__file__).parents[2]

SIGNAL_AT_IMPORT = """
import os, sys
class Signals:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})
sys.modules.pop({name!r}, None)
sys.meta_path.insert(0, Signals())
"""
SIGNAL_AFTER_FORK = """
import os, subprocess
class Popen(subprocess.Popen):
    def _execute_child(self, *arguments):
        super()._execute_child(*arguments)
        os.write(1, str(self.pid).encode())
        os.kill(os.getpid(), {number})
        os.getpid()  # the handler runs before this: nobody has the new process yet
subprocess.Popen = Popen
"""
RUN = "from server.entry import main\nsys.exit(main(sys.argv[1:]))"


def run(before: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{before}\n{RUN}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("argparse", signal.SIGINT),  # the first import after the entry's own
        ("server.config.options", signal.SIGTERM),
        ("server.app.bootstrap", signal.SIGINT),
        ("server.memory.planner.planner", signal.SIGTERM),
        ("server.app.api_process", signal.SIGINT),
        ("fastapi", signal.SIGTERM),
    ],
)
def test_a_signal_at_any_import_ends_the_start_in_silence(name: str, number: int) -> None:
    ended = run(SIGNAL_AT_IMPORT.format(name=name, number=int(number)), "serve", "--port", "0")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_another_command_that_is_interrupted_says_so_by_its_exit_code() -> None:
    before = SIGNAL_AT_IMPORT.format(name="argparse", number=int(signal.SIGINT))
    ended = run(before, "plan", "gpt2", "--device", "16GiB")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_a_signal_while_the_engine_is_spawned_leaves_no_engine() -> None:
    before = SIGNAL_AFTER_FORK.format(number=int(signal.SIGTERM))
    ended = run(before, "serve", "--port", "0")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert has_ended(int(ended.stdout))


TELLS_WHAT_IT_TOOK = """
import atexit, json, re
import server.app.bootstrap
class AllIsChecked:
    def find_spec(self, name, path=None, target=None):
        if name == "server.app.api_process":
            raise AssertionError("all is checked")
sys.meta_path.insert(0, AllIsChecked())
spawn = server.app.bootstrap.spawn_engine
def spawn_engine(command, *arguments):
    engine = spawn(("sleep", "60"), *arguments)  # and as many seconds as its arguments say
    atexit.register(tell, engine)
    return engine
server.app.bootstrap.spawn_engine = spawn_engine
def tell(engine):
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)
    loaded = {"torch", "numpy", "tokenizers", "fastapi"} & set(sys.modules)
    print(json.dumps([sorted(loaded), int(peak) // 1024, engine.popen.returncode]))
"""


@pytest.mark.parametrize(
    "name",
    [
        *("tensor_missing", "shape_of_another_model", "more_tensors_than_any_model_has"),
        *("index_names_a_million_tensors_in_few_bytes", "snapshot_mounted_without_its_blobs"),
    ],
)
def test_what_headers_and_config_tell_is_told_before_the_engine_is_told_anything(
    name: str, tmp_path: Path
) -> None:
    mutation = MUTATIONS[name]
    write_good_folder(tmp_path / "model", sharded=mutation.sharded)
    mutation.apply(tmp_path / "model")
    ended = run(TELLS_WHAT_IT_TOOK, "serve", str(tmp_path / "model"), "--device", "cpu")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert all(word in ended.stderr for word in mutation.words)
    loaded, peak_mib, engine = json.loads(ended.stdout)
    assert loaded == []
    assert engine == -signal.SIGKILL
    assert peak_mib < 128


def test_positions_that_cannot_be_meant_ask_for_a_length(tmp_path: Path) -> None:
    """Everything else that grows with positions is of --max-model-len, and in the plan."""
    write_good_folder(tmp_path)
    edit_config(tmp_path, max_position_embeddings=1 << 26)
    arguments = ("serve", str(tmp_path), "--device", "cpu")
    ended = run(TELLS_WHAT_IT_TOOK, *arguments)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert "67108864 positions" in ended.stderr
    assert "--max-model-len TOKENS" in ended.stderr
    assert json.loads(ended.stdout)[0] == []
    served = run(TELLS_WHAT_IT_TOOK, *arguments, "--max-model-len", "4096", "--port", "0")
    assert "AssertionError: all is checked" in served.stderr


STANDS_IN_FOR_THE_ENGINE = """
import json, os
import server.app.bootstrap
from server.errors import StartupError
def spawn_engine(command, gauges_fd, folder):
    links = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
    inherited = all(os.get_inheritable(number) for number in range(3))
    with open(sys.argv.pop(), "w") as file:
        json.dump([links, inherited, gauges_fd > 2], file)
    raise StartupError("seen")
server.app.bootstrap.spawn_engine = spawn_engine
"""


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 1, 2), (2,)])
def test_closed_descriptors_are_null_and_not_the_gauges(
    closed: tuple[int, ...], tmp_path: Path
) -> None:
    code = f"import sys\n{STANDS_IN_FOR_THE_ENGINE}\n"
    code += "from server.entry import main\nsys.exit(main(sys.argv[1:-1]))"
    redirections = " ".join(f"{number}>&-" for number in closed)
    shell = f'exec "$0" -c "$1" serve --port 0 "$2" {redirections}'
    seen, other = tmp_path / "seen", tmp_path / "other"
    with other.open("w+") as file:
        ended = subprocess.run(
            ["/bin/sh", "-c", shell, sys.executable, code, str(seen)],
            stdin=file,
            stdout=file,
            stderr=file,
            cwd=ROOT,
            timeout=60,
        )
    assert ended.returncode == 2, other.read_text()
    links = ["/dev/null" if number in closed else str(other) for number in range(3)]
    assert json.loads(seen.read_text()) == [links, True, True]
