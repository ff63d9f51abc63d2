"""Every option, by every way of giving it, and what is refused with which words."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from server.config.options import DEMO_MODEL_DIR, OPTIONS, VARIABLES, Option
from server.config.server_config import (
    ServerConfig,
    limit_thread_spinning,
    resolve,
)
from server.config.values import read_integer, read_size
from server.errors import StartupError
from server.memory.engine_args import EngineArgs
from server.memory.planner.resolve_args import resolve_engine
from server.startup.model_info import read_model
from server.units import exact_size, format_size
from tests.native_kernels import needs_native
from weights.synthetic.tiny_specs import tiny_llama

# A value other than the default for each option: what is written, and what it comes to.
EXAMPLES: dict[str, tuple[str, object]] = {
    "model-dir": ("/models/tiny", "/models/tiny"),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "served-model-name": ("mine", "mine"),
    "device": ("cpu", "cpu"),
    "backend": ("torch", "torch"),
    "dtype": ("float32", "float32"),
    "quantization": ("int4", "int4"),
    "max-model-len": ("2048", 2048),
    "max-num-seqs": ("7", 7),
    "max-num-batched-tokens": ("4096", 4096),
    "block-size": ("64", 64),
    "batch-invariant": ("on", True),
    "cuda-graphs": ("off", "off"),
    "kv-cache-dtype": ("bfloat16", "bf16"),
    "kv-cache-memory": ("1.5GiB", 3 * 2**29),
    "prefix-caching": ("off", False),
    "max-queued-requests": ("5", 5),
    "queue-timeout": ("2.5", 2.5),
    "api-memory": ("256MiB", 2**28),
    "max-body-size": ("1MiB", 2**20),
    "max-connections": ("9", 9),
    "stream-keep-alive": ("20", 20.0),
    "generation-config": ("none", "none"),
    "log-format": ("json", "json"),
    "drain-timeout": ("0", 0.0),
    "threads": ("3", 3),
}
each_option = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


def value_of(config: ServerConfig, option: Option) -> object:
    part = config if hasattr(config, option.field) else config.engine
    return getattr(part, option.field)


def toml_file(folder: Path, text: str) -> str:
    path = folder / "quire.toml"
    path.write_text(text)
    return str(path)


def test_the_table_the_fields_and_the_examples_name_the_same_options() -> None:
    names = [option.field for option in (*OPTIONS, *VARIABLES)]
    no_options = {"ranks", "whole_load"}
    asked = {field.name for field in fields(EngineArgs)} - no_options
    assert set(names) == {field.name for field in fields(ServerConfig)} - {"engine"} | asked
    assert len(names) == len(set(names))
    assert {option.name for option in OPTIONS} == set(EXAMPLES)


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("0.0", 0.0), ("1", 1.0), ("3600", 3600)])
def test_0_switches_the_comments_of_streams_off(text: str, value: float) -> None:
    assert resolve({"stream-keep-alive": text}, {}).stream_keep_alive == value


@pytest.mark.parametrize("text", ["0.5", "-1", "3601", "nan", "off"])
def test_comments_of_streams_are_no_flood(text: str) -> None:
    with pytest.raises(StartupError, match="--stream-keep-alive"):
        resolve({"stream-keep-alive": text}, {})


@each_option
def test_an_option_can_be_given_as_a_flag(option: Option) -> None:
    text, value = EXAMPLES[option.name]
    assert value_of(resolve({option.name: text}, {}), option) == value


@each_option
def test_an_option_can_be_given_as_a_variable(option: Option) -> None:
    text, value = EXAMPLES[option.name]
    assert value_of(resolve({}, {option.variable: text}), option) == value


@each_option
def test_an_option_can_be_given_in_the_file(option: Option, tmp_path: Path) -> None:
    text, value = EXAMPLES[option.name]
    config = resolve({}, {}, toml_file(tmp_path, f'{option.name} = "{text}"\n'))
    assert value_of(config, option) == value


def test_the_file_takes_numbers_and_booleans_as_they_are(tmp_path: Path) -> None:
    text = "port = 9000\nqueue-timeout = 1.5\nprefix-caching = false\n"
    config = resolve({}, {}, toml_file(tmp_path, text))
    asked = config.engine
    assert (config.port, asked.queue_timeout, asked.prefix_caching) == (9000, 1.5, False)


def test_flag_comes_before_variable_before_file_before_default(tmp_path: Path) -> None:
    path = toml_file(tmp_path, "port = 1003\n")
    assert resolve({}, {}).port == 8000
    assert resolve({}, {}, path).port == 1003
    assert resolve({}, {"QUIRE_CONFIG": path}).port == 1003
    assert resolve({}, {"QUIRE_PORT": "1002"}, path).port == 1002
    assert resolve({"port": "1001"}, {"QUIRE_PORT": "1002"}, path).port == 1001


@pytest.mark.parametrize(
    ("flags", "variables", "file", "words"),
    [
        ({}, {"QUIRE_PROT": "1"}, "", ["QUIRE_PROT", "QUIRE_PORT"]),
        ({"max_num_seqs": "8"}, {}, "", ["--max_num_seqs", "max-num-seqs"]),
        ({}, {}, "max_model_len = 8", ["'max_model_len'", "max-model-len"]),
        ({}, {}, "nonsense = 8", ["'nonsense'", "known are"]),
        ({}, {}, "port = [1]", ["port", "a string, a number or a boolean"]),
        ({}, {}, "port = ", ["quire.toml"]),
        ({"port": "many"}, {}, "", ["--port", '"many"', "whole number"]),
        ({"port": "65536"}, {}, "", ["--port", "between 0 and 65535"]),
        ({}, {"QUIRE_DTYPE": "int3"}, "", ["QUIRE_DTYPE", "float32, bfloat16"]),
        ({}, {}, 'dtype = "int3"', ["dtype in ", "quire.toml"]),
        ({"kv-cache-memory": "2 bananas"}, {}, "", ["--kv-cache-memory", "512MiB"]),
        ({"queue-timeout": "nan"}, {}, "", ["--queue-timeout", "seconds"]),
        ({"queue-timeout": "-1"}, {}, "", ["--queue-timeout", "between"]),
        ({"prefix-caching": "yes"}, {}, "", ["--prefix-caching", "neither on nor off"]),
        ({"block-size": "24"}, {}, "", ["--block-size", "power of two"]),
        ({"max-num-seqs": "9", "max-num-batched-tokens": "8"}, {}, "", ["--max-num-seqs 9"]),
        ({"host": " "}, {}, "", ["--host", "empty"]),
    ],
)
def test_a_bad_value_is_refused_with_its_option_and_source(
    flags: dict[str, str], variables: dict[str, str], file: str, words: list[str], tmp_path: Path
) -> None:
    path = toml_file(tmp_path, file) if file else None
    with pytest.raises(StartupError) as raised:
        resolve(flags, variables, path)
    for word in words:
        assert word in str(raised.value)


def test_a_missing_file_is_refused_by_name() -> None:
    with pytest.raises(StartupError, match=r"/no/such\.toml"):
        resolve({}, {}, "/no/such.toml")


def test_the_books_are_checked_after_every_step_by_a_variable_alone(tmp_path: Path) -> None:
    assert not resolve({}, {}).debug_check_invariants
    assert resolve({}, {"QUIRE_DEBUG_CHECK_INVARIANTS": "on"}).debug_check_invariants
    with pytest.raises(
        StartupError, match=r"QUIRE_DEBUG_CHECK_INVARIANTS: 'yes' is neither on nor off"
    ):
        resolve({}, {"QUIRE_DEBUG_CHECK_INVARIANTS": "yes"})
    with pytest.raises(StartupError, match="unknown key 'debug-check-invariants'"):
        resolve({}, {}, toml_file(tmp_path, "debug-check-invariants = true\n"))


def test_a_level_of_the_kernels_is_named_by_a_variable_alone() -> None:
    assert resolve({}, {}).engine.cpu_level is None
    assert resolve({}, {"QUIRE_CPU_LEVEL": "portable"}).engine.cpu_level == "portable"
    with pytest.raises(StartupError, match="QUIRE_CPU_LEVEL: must not be empty"):
        resolve({}, {"QUIRE_CPU_LEVEL": ""})
    with pytest.raises(StartupError, match="unknown option --cpu-level"):
        resolve({"cpu-level": "portable"}, {})


def test_the_queue_holds_a_mean_prompt_in_every_place_and_always_one_of_any_length() -> None:
    def most(max_model_len: int, **flags: str) -> int:
        asked = resolve({"device": "cpu", "dtype": "float32", **flags}, {}).engine
        return resolve_engine(asked, tiny_llama(), max_model_len).scheduler.max_queued_tokens

    assert most(8192) == 256 * 1024
    few = {"max-queued-requests": "3"}
    assert (most(3072, **few), most(8192, **few)) == (3072, 8192)


def test_the_served_name_is_the_folders_unless_one_is_given() -> None:
    assert resolve({}, {}).model_name == "quire-demo"
    assert resolve({}, {}).model_dir == str(DEMO_MODEL_DIR)
    assert resolve({"model-dir": "/models/tiny/"}, {}).model_name == "tiny"
    assert resolve({"served-model-name": "mine"}, {}).model_name == "mine"


def test_sizes_are_written_for_people() -> None:
    sizes = [0, 1023, 1536, -(64 << 20), 2**31, 2**50]
    expected = ["0 B", "1023 B", "1.50 KiB", "-64.00 MiB", "2.00 GiB", "1024.00 TiB"]
    assert [format_size(size) for size in sizes] == expected


@pytest.mark.parametrize("nbytes", [0, 1, 1000, 1 << 10, 2304 << 10, 16 << 30, 3 << 40])
def test_a_size_is_written_to_the_byte_as_an_option_takes_it(nbytes: int) -> None:
    assert read_size(exact_size(nbytes), 0, 1 << 50) == nbytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9" * 400 + "GiB", r"99… is not between"),  # more than a float holds
        ("9" * 5000, r"99… \(bytes\) is not between"),  # more than int() reads
        ("x" * 400, r'"xx+… is not a size'),
        ("24", r'"24" \(bytes\) is not between 1\.00 GiB'),
    ],
)
def test_a_size_beyond_all_bounds_is_refused_in_few_words(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read_size(text, 1 << 30, 1 << 44)
    assert len(str(raised.value)) < 120
    with pytest.raises(ValueError) as number:
        read_integer("9" * 4000, 1, 5)
    assert len(str(number.value)) < 120


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_threads_stop_spinning_unless_the_operator_says_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    limit_thread_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_quantised_matrices_are_refused_where_a_cpu_computes() -> None:
    refused = r"--quantization int4 needs a GPU, and this server computes on a CPU.* leave it out"
    with pytest.raises(StartupError, match=refused):
        read_model(resolve({"quantization": "int4"}, {}))
    with pytest.raises(StartupError, match=r"int8 needs a GPU or --backend native, .* with torch:"):
        read_model(resolve({"quantization": "int8", "backend": "torch"}, {}))
    assert resolve({"quantization": "none"}, {}).engine.quantization is None


@needs_native
def test_the_fingerprint_tells_formats_of_answers_apart() -> None:
    """What is named though it is the model's anyway changes nothing."""

    def fingerprint(**flags: str) -> str:
        flags = {name.replace("_", "-"): value for name, value in flags.items()}
        return read_model(resolve({"dtype": "float32", **flags}, {})).fingerprint

    forms = (
        {},
        {"dtype": "bfloat16"},
        {"quantization": "int8"},
        {"kv_cache_dtype": "int8"},
        {"kv_cache_dtype": "bfloat16"},
        {"kv_cache_dtype": "int8", "quantization": "int8"},
    )
    assert len({fingerprint(**flags) for flags in forms}) == len(forms)
    assert fingerprint(kv_cache_dtype="float32") == fingerprint(kv_cache_dtype="auto")
    assert fingerprint(kv_cache_dtype="auto") == fingerprint()
