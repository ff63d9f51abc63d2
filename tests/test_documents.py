"""DECISIONS.md keeps its form and its index, and the documents name files that exist."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "DECISIONS.md", "CONTRIBUTING.md")
FOLDERS = ("server", "kernels", "weights", "loadtest", "deploy", "tests")
# A decision of many points says why with each: "Choice and why".
PARTS = re.compile(
    r"\*\*Choice(\.\*\*.*\*\*Why\.| and why).*\*\*Alternatives\..*\*\*Reconsider ", re.DOTALL
)
DATES = re.compile(r"(\d{4}-\d\d-\d\d)(?:, last changed (\d{4}-\d\d-\d\d))?")
STATUS = re.compile(r"Status: ((?:accepted|superseded by \d+)(?:, amended by \d+)?)")


@dataclass(frozen=True, slots=True)
class Decision:
    number: int
    title: str
    status: str
    decided: str
    changed: str
    text: str

    @property
    def row(self) -> str:
        """Its line of the index, with GitHub's address of its heading."""
        heading = f"{self.number}. {self.title}".lower()
        anchor = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        cells = (str(self.number), f"[{self.title}](#{anchor})", self.status, self.decided)
        return f"| {' | '.join(cells)} | {self.changed} |"


def decisions() -> list[Decision]:
    found = []
    for entry in re.split(r"^## ", read("DECISIONS.md"), flags=re.MULTILINE)[1:]:
        number, title = entry.splitlines()[0].split(". ", 1)
        head = " ".join(entry.split("\n\n")[1].split())
        dates, status = DATES.match(head), STATUS.search(head)
        assert dates and status, f"decision {number} begins with its date and its status"
        decided, changed = dates.groups(default="")
        found.append(Decision(int(number), title, status[1], decided, changed, entry))
    return found


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def test_the_index_lists_every_decision_as_it_stands() -> None:
    rows = [line for line in read("DECISIONS.md").splitlines() if re.match(r"\| \d+ \| \[", line)]
    assert rows == [decision.row for decision in decisions()]
    assert [one.number for one in decisions()] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("decision", decisions(), ids=lambda one: str(one.number))
def test_each_decision_has_all_parts_and_names_later_ones(decision: Decision) -> None:
    assert PARTS.search(decision.text)
    last = decisions()[-1].number
    assert all(decision.number < int(by) <= last for by in re.findall(r"by (\d+)", decision.status))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str) -> None:
    path = rf"(?:{'|'.join(FOLDERS)})/[\w./-]+"
    named = re.findall(rf"(?:`|\]\()({path})[`)]", read(document))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
