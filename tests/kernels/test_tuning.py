"""The tuning table: which row wins, and what the tuner writes into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this machine")

from kernels import tuning
from kernels.tune import record
from kernels.tuner.search import Choice
from kernels.tuner.writer import merged, write_table
from kernels.tuning import Row, Tuning, lookup, trying

ENVIRONMENT = {"arch": 90, "date": "2026-01-01T00:00:00Z", "device": "NVIDIA H200"}


# --- looking up -----------------------------------------------------------------------------------


def test_the_first_row_that_applies_wins():
    rows = (
        Row("k", (90,), {"width": [1, 8], "format": "int4"}, Tuning({"B": 1}, 1, 1)),
        Row("k", (), {"width": [1, 8]}, Tuning({"B": 2}, 1, 1)),
        Row("k", (), {}, Tuning({"B": 3}, 1, 1)),
    )
    with trying(rows, 90):
        assert lookup("k", 90, width=8, format="int4").blocks["B"] == 1
        assert lookup("k", 80, width=8, format="int4").blocks["B"] == 2
        assert lookup("k", 90, width=1, format="bf16").blocks["B"] == 2
        assert lookup("k", 90, width=9).blocks["B"] == 3
        assert lookup("k", 90).blocks["B"] == 3  # a fact that is not told fulfils no condition


def test_a_lookup_without_a_row_names_what_it_looked_for():
    with pytest.raises(LookupError, match="no configuration of nothing for sm_80 with width 4"):
        lookup("nothing", 80, width=4)


def test_a_trial_comes_first_and_ends_with_its_block():
    usual = lookup("embedding", 90)
    row = Row("embedding", (), {}, Tuning({"BLOCK": 7}, 1, 1))
    with trying((row,), 80) as trial:
        assert tuning.architecture(torch.device("meta")) == 80
        assert trial.found == []
        assert lookup("embedding", 80).blocks["BLOCK"] == 7
        assert trial.found == [row]
    assert lookup("embedding", 90) == usual
    assert tuning.architecture(torch.device("meta")) == tuning.INTERPRETED_ARCH


def test_a_gpu_is_asked_what_it_is_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def capability(index: int) -> tuple[int, int]:
        asked.append(index)
        return 8, index % 10

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    for _ in range(3):
        assert tuning.architecture(torch.device("cuda", 96)) == 86
        assert tuning.architecture(torch.device("cuda", 99)) == 89
    assert asked == [96, 99]


def test_every_kernel_of_the_shipped_table_has_a_row_that_always_applies():
    kernels = {row.kernel for row in tuning.rows()}
    general = {row.kernel for row in tuning.rows() if not row.archs and not row.when}
    assert kernels - general <= {"move_blocks"}  # which cuts its pairs into calls of 1024


# --- writing --------------------------------------------------------------------------------------

TABLE = {
    "environments": [{"arch": 80, "device": "A"}, {"arch": 90, "device": "old"}],
    "rows": [
        {"kernel": "a", "blocks": {"B": 1}, "num_warps": 4, "num_stages": 1},
        {"kernel": "b", "archs": [90], "when": {"w": [1, 8]}, "num_warps": 2, "num_stages": 1},
        {"kernel": "b", "archs": [90], "when": {"w": 9}, "num_warps": 3, "num_stages": 1},
        {"kernel": "b", "archs": [80], "when": {"w": [1, 8]}, "num_warps": 5, "num_stages": 1},
        {"kernel": "b", "num_warps": 4, "num_stages": 1},
        {"kernel": "c", "num_warps": 4, "num_stages": 1},
    ],
}


def measured(kernel: str, when: Mapping[str, object], warps: int) -> Row:
    return Row(kernel, (90,), when, Tuning({}, warps, 2))


def test_measured_rows_go_before_their_kernel_s_others_and_replace_their_like():
    found = merged(TABLE, [measured("b", {"w": [1, 8]}, 8), measured("d", {}, 1)], ENVIRONMENT)
    lines = [
        (row["kernel"], row.get("archs"), row.get("when"), row["num_warps"])
        for row in found["rows"]
    ]
    assert lines == [
        ("a", None, None, 4),
        ("b", [90], {"w": [1, 8]}, 8),  # measured, in place of the old measurement
        ("b", [90], {"w": 9}, 3),
        ("b", [80], {"w": [1, 8]}, 5),
        ("b", None, None, 4),
        ("c", None, None, 4),
        ("d", [90], None, 1),
    ]
    assert found["environments"] == [{"arch": 80, "device": "A"}, ENVIRONMENT]
    assert TABLE["rows"][1]["num_warps"] == 2  # the given content is not changed


def test_a_written_table_reads_as_it_was_one_row_a_line(tmp_path: Path):
    path = tmp_path / "table.json"
    write_table(path, TABLE)
    assert json.loads(path.read_text()) == TABLE
    assert len(path.read_text().splitlines()) == 2 + len(TABLE["rows"]) + 3
    shipped = json.loads(tuning.TABLE.read_text())
    write_table(path, shipped)
    assert json.loads(path.read_text()) == shipped


def test_choices_are_recorded_and_the_rest_of_the_table_stays(tmp_path: Path):
    path = tmp_path / "table.json"
    write_table(path, TABLE)
    record([Choice("x", (measured("c", {}, 16),), 0.5), Choice("y", (), 1.0)], ENVIRONMENT, path)
    rows = [tuning.row_from(entry) for entry in json.loads(path.read_text())["rows"]]
    assert len(rows) == len(TABLE["rows"]) + 1
    assert [row.tuning.num_warps for row in rows if row.kernel == "c"] == [16, 4]
    assert rows[-2].archs == (90,)
