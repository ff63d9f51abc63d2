"""`quire models`: what it prints, and that README's table is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.cli import main
from server.startup.model_families import ENDPOINTS, model_families, table
from weights import families

README = Path(__file__).parents[2] / "README.md"


def test_every_family_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(families.FAMILIES)]] == [
        family.name for family in families.FAMILIES
    ]
    assert any(line.startswith("devices") and "cpu" in line for line in lines)


def test_json_says_what_each_is_served_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    told = {row["family"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(told) == {family.name for family in families.FAMILIES}
    assert "LlamaForCausalLM" in told["llama"]["architectures"]
    assert {"windows", "soft caps"} <= set(told["gemma2"]["attention"])
    assert told["gpt2"]["positions"] == ["learned"]
    for row in told.values():
        assert row["devices"] and row["endpoints"] == list(ENDPOINTS)


def test_facts_follow_from_the_readers() -> None:
    found = {row.family: row for row in model_families()}
    assert "q/k norms" in found["qwen3"].attention and "q/k norms" not in found["qwen2"].attention
    assert "part of a head" in found["glm4"].positions
    assert "windows" not in found["llama"].attention


def test_readme_has_the_table() -> None:
    head, *rows = [f"| {' | '.join(row)} |" for row in table()]
    expected = "\n".join((head, f"|{'---|' * len(table()[0])}", *rows))
    assert expected in README.read_text(encoding="utf-8"), expected
