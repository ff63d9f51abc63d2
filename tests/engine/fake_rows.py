"""The rows of a fake executor, and a KV store that remembers what was written where.

For every slot the store knows which prefix was written there; before a row's token is chosen, every
slot of the row's context that its tokens of the step see must hold exactly the row's own prefix. A
stale slot, a wrong share, a missing copy or a lost write raises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from server.engine.kv_spec import KVCacheSpec
from server.engine.step_plan import AdmittedRow, PlannedRow
from tests.engine.fake_model import extend_prefix


@dataclass
class FakeRow:
    admitted: AdmittedRow
    token_ids: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)  # fingerprint up to each token
    tables: list[list[int]] = field(default_factory=list)
    num_computed: int = 0

    def append(self, token: int) -> None:
        self.token_ids.append(token)
        self.prefixes.append(extend_prefix(self.prefixes[-1] if self.prefixes else 0, token))


class KVStoreError(AssertionError):
    """The plan would make a row read or write what is not its own."""


class FakeRows(dict[int, FakeRow]):
    """Rows by number. ``violations`` are kept, because the engine takes a raise for a failed step.

    The methods are the effects of a StepPlan, in the order that it declares.
    """

    def __init__(self, spec: KVCacheSpec) -> None:
        super().__init__()
        self.block_size = spec.block_size
        self.num_blocks = spec.num_blocks
        self.windows = [group.window for group in spec.groups]
        self.store: list[list[list[int | None]]] = [
            [[None] * self.block_size for _ in range(spec.num_blocks)] for _ in self.windows
        ]
        self.violations: list[str] = []

    def seen(self, position: int) -> list[int]:
        """The first position that the token at ``position`` sees, in each group."""
        return [0 if window is None else max(0, position - window + 1) for window in self.windows]

    def violation(self, message: str) -> KVStoreError:
        self.violations.append(message)
        return KVStoreError(message)

    def copy_blocks(self, copies: tuple[tuple[int, int], ...]) -> None:
        destinations = [destination for _, destination in copies]
        if len(set(destinations)) != len(destinations):
            raise self.violation(f"two copies into one block: {copies}")
        for store in self.store:
            read = [list(store[source]) for source, _ in copies]
            for content, destination in zip(read, destinations, strict=True):
                store[destination] = content

    def admit(self, admitted: AdmittedRow) -> None:
        if admitted.row in self:
            raise self.violation(f"row {admitted.row} is admitted and was not released")
        row = FakeRow(admitted, tables=[list(table) for table in admitted.block_tables])
        for token in admitted.token_ids:
            row.append(token)
        row.num_computed = admitted.num_computed_tokens
        for group, table in enumerate(row.tables):
            capacity = len(table) * self.block_size
            self._poison(group, table, range(row.num_computed, capacity))
        self[admitted.row] = row

    def _poison(self, group: int, table: list[int], positions: range) -> None:
        for position in positions:
            block = self._real(table[position // self.block_size])
            self.store[group][block][position % self.block_size] = None

    def _real(self, block: int) -> int:
        if not 0 <= block < self.num_blocks:
            raise self.violation(f"block {block} is read or written, and there is no such block")
        return block

    def write(self, planned: PlannedRow) -> None:
        row = self[planned.row]
        for group, block_ids in enumerate(planned.new_block_ids):
            start = len(row.tables[group]) * self.block_size
            row.tables[group].extend(block_ids)
            end = len(row.tables[group]) * self.block_size
            self._poison(group, row.tables[group], range(start, end))
        end = row.num_computed + planned.num_scheduled_tokens
        if planned.num_scheduled_tokens < 1 or end > len(row.token_ids):
            raise self.violation(f"row {planned.row} has no {planned.num_scheduled_tokens} tokens")
        size = self.block_size
        for group in range(len(self.windows)):
            for position in range(row.num_computed, end):
                block = self._block(planned.row, group, position // size)
                self._check_private(planned.row, group, block)
                self.store[group][block][position % size] = row.prefixes[position]
        row.num_computed = end

    def _block(self, row: int, group: int, index: int) -> int:
        table = self[row].tables[group]
        if index >= len(table):
            raise self.violation(f"row {row} has no block for a scheduled token")
        return self._real(table[index])

    def _check_private(self, row: int, group: int, block: int) -> None:
        for other, fake_row in self.items():
            start = self.seen(fake_row.num_computed)[group] // self.block_size
            if other != row and block in fake_row.tables[group][start:]:
                raise self.violation(f"row {row} writes block {block}, which row {other} holds")

    def verify(self, planned: PlannedRow) -> None:
        row, size = self[planned.row], self.block_size
        first = row.num_computed - planned.num_scheduled_tokens
        for group, seen in enumerate(self.seen(first)):
            for position in range(seen, row.num_computed):
                block = self._block(planned.row, group, position // size)
                found = self.store[group][block][position % size]
                if found != row.prefixes[position]:
                    raise self.violation(
                        f"row {planned.row} reads position {position} in block {block}, "
                        f"which holds {'nothing' if found is None else 'another prefix'}"
                    )
