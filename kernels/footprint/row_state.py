"""Where everything lies in a running row's record on a device, and in a step's packet. No torch.

A row's record is ``words`` int32 words; 64-bit numbers take two of them and floats their bits:

    | head: flags, top_k, key, six floats | block table ........ | token ids .................. |
    0                                     TABLE_AT               tokens_at                    words

A packet is one upload of int32 words. It begins with the step table, columns of ``max_num_seqs``
words that say what each row of the batch does:

    | num_rows | row | start (one more) | computed | sample | output | what else the step needs
    0          rows_at starts_at        computed_at samples_at outputs_at         words

``row`` is the number of the record; the row's tokens of this step are ``start[b] : start[b + 1]``
of the batch's, and ``computed[b]`` tokens of its context came before them. ``sample[b]`` is the
row's place among those that choose a token, -1 for none; ``output[b]`` that token's index among
the generated ones. Lengths are arithmetic that the host can do without waiting; tokens are not,
so a packet says nothing about a token that was sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.footprint import round_up

# Words of a record's head.
COUNTS = 0  # which tables the row's penalties read: the sum of the two values below
TOP_K = 1
KEY_LOW = 2  # the random key's lower and upper 32 bits
KEY_HIGH = 3
FLOATS_AT = 4  # temperature, top_p, min_p, presence, frequency, repetition
NUM_FLOATS = 6
TABLE_AT = 16

COUNTS_OUTPUT = 1  # output_counts
COUNTS_PROMPT = 2  # prompt_mask

SEGMENT_WORDS = 4  # row, first word of the record, first word of the packet, number of words
COUNTED_WORDS = 3  # row, number of prompt tokens, number of known tokens

_ALIGNMENT = 16  # words: records and tables start on a cache line


def _aligned(words: int) -> int:
    return round_up(words, _ALIGNMENT)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The record of a row that holds up to ``max_tokens`` tokens, and for each of ``groups`` of the
    KV cache up to ``max_blocks`` blocks. The groups' tables lie one after the other."""

    max_blocks: int
    max_tokens: int
    groups: int = 1

    @property
    def tokens_at(self) -> int:
        return _aligned(self.table_at(self.groups))

    def table_at(self, group: int) -> int:
        """The first word of a group's block table."""
        return TABLE_AT + group * self.max_blocks

    @property
    def words(self) -> int:
        return _aligned(self.tokens_at + self.max_tokens)


@dataclass(frozen=True, slots=True)
class StepTable:
    """The columns at the beginning of a packet, for batches of up to ``max_num_seqs`` rows."""

    max_num_seqs: int

    @property
    def rows_at(self) -> int:
        return _ALIGNMENT

    @property
    def starts_at(self) -> int:
        return self.rows_at + self.max_num_seqs

    @property
    def computed_at(self) -> int:
        return self.starts_at + self.max_num_seqs + 1

    @property
    def samples_at(self) -> int:
        return self.computed_at + self.max_num_seqs

    @property
    def outputs_at(self) -> int:
        return self.samples_at + self.max_num_seqs

    @property
    def words(self) -> int:
        return _aligned(self.outputs_at + self.max_num_seqs)
