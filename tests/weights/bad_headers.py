"""A safetensors header that does not describe its file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.weights.folders import (
    OTHER_SHARD,
    SHARD,
    WEIGHTS,
    Header,
    edit_header,
    read_parts,
    write_parts,
)
from tests.weights.mutations import NORM, Q_PROJ, Mutations

BAD_HEADERS = Mutations()


def _set_length(folder: Path, length: int) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + raw[8:])


@BAD_HEADERS.mutation(WEIGHTS, "few")
def file_of_four_bytes(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 4)


@BAD_HEADERS.mutation(WEIGHTS, "header length")
def header_length_absurd(folder: Path) -> None:
    _set_length(folder, 1 << 62)


@BAD_HEADERS.mutation(WEIGHTS, "header length")
def header_length_minus_one(folder: Path) -> None:
    _set_length(folder, (1 << 64) - 1)


@BAD_HEADERS.mutation(WEIGHTS, "header length", "at most 33554432")
def header_length_beyond_the_limit(folder: Path) -> None:
    _set_length(folder, 150_000_000)
    os.truncate(folder / WEIGHTS, 200_000_000)  # a hole: it takes no room on the disk


@BAD_HEADERS.mutation(WEIGHTS, "100021 tensors", "more than 65536")
def more_tensors_than_any_model_has(folder: Path) -> None:
    header, data = read_parts(folder / WEIGHTS)
    empty = '"dtype":"F32","shape":[0],"data_offsets":[0,0]'
    more = ",".join(f'"ghost.{index}":{{{empty}}}' for index in range(100_000))
    encoded = f"{json.dumps(header)[:-1]},{more}}}"
    write_parts(folder / WEIGHTS, encoded.encode(), data)


@BAD_HEADERS.mutation(OTHER_SHARD, "with this file the headers", "33554432", sharded=True)
def headers_too_large_together(folder: Path) -> None:
    for file in (SHARD, OTHER_SHARD):
        header, data = read_parts(folder / file)
        write_parts(folder / file, json.dumps(header).encode() + b" " * (17 << 20), data)


@BAD_HEADERS.mutation(WEIGHTS, "header length")
def header_length_beyond_the_file(folder: Path) -> None:
    _set_length(folder, (folder / WEIGHTS).stat().st_size)


@BAD_HEADERS.mutation(WEIGHTS, "not valid JSON")
def header_length_short(folder: Path) -> None:
    _set_length(folder, 40)


@BAD_HEADERS.mutation(WEIGHTS, "not valid JSON")
def header_length_zero(folder: Path) -> None:
    _set_length(folder, 0)


@BAD_HEADERS.mutation(WEIGHTS, "duplicate", NORM)
def tensor_twice_in_one_header(folder: Path) -> None:
    _, data = read_parts(folder / WEIGHTS)
    entry = b'"model.norm.weight": {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}'
    write_parts(folder / WEIGHTS, b"{" + entry + b", " + entry + b"}", data[:128])


@BAD_HEADERS.mutation(WEIGHTS, "__metadata__")
def metadata_of_numbers(folder: Path) -> None:
    edit_header(folder, lambda header: header.update(__metadata__={"format": 1}))


@BAD_HEADERS.mutation(WEIGHTS, Q_PROJ, "object")
def tensor_is_a_number(folder: Path) -> None:
    edit_header(folder, lambda header: header.update({Q_PROJ: 3}))


@BAD_HEADERS.mutation(WEIGHTS, "overlap", NORM)
def tensors_overlap(folder: Path) -> None:
    def change(header: Header) -> None:
        begin = header[Q_PROJ]["data_offsets"][0]
        header[NORM]["data_offsets"] = [begin, begin + 128]

    edit_header(folder, change)


@BAD_HEADERS.mutation(WEIGHTS, "no tensor", NORM)
def gap_between_tensors(folder: Path) -> None:
    header, data = read_parts(folder / WEIGHTS)
    begin = header[NORM]["data_offsets"][0]
    for entry in header.values():
        offsets = entry.get("data_offsets")
        if offsets and offsets[0] >= begin:
            entry["data_offsets"] = [offset + 16 for offset in offsets]
    write_parts(folder / WEIGHTS, header, data[:begin] + bytes(16) + data[begin:])


@BAD_HEADERS.mutation(WEIGHTS, "no tensor")
def bytes_after_the_last_tensor(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as stream:
        stream.write(bytes(32))


@BAD_HEADERS.mutation(WEIGHTS, "lm_head.weight", "cut off")
def data_cut_off(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 100)


BAD_HEADERS.entry("offsets_negative", "data_offsets", data_offsets=[-4096, 0])
BAD_HEADERS.entry("offsets_reversed", "data_offsets", data_offsets=[4096, 0])
BAD_HEADERS.entry("offsets_of_three", "data_offsets", data_offsets=[0, 1, 2])
BAD_HEADERS.entry("offsets_as_words", "data_offsets", data_offsets=["0", "4096"])
BAD_HEADERS.entry("offsets_beyond_the_file", "cut off", data_offsets=[1 << 40, (1 << 40) + 4096])
BAD_HEADERS.entry("shape_and_bytes_disagree", "4096", "3968", shape=[31, 32])
BAD_HEADERS.entry("shape_missing", "shape", shape=None)
BAD_HEADERS.entry("dimension_negative", "shape", "-32", shape=[-32, -32])
BAD_HEADERS.entry("dimension_huge", "shape", shape=[1 << 60, 32])
BAD_HEADERS.entry("dimensions_overflow", "bytes", shape=[1 << 40, 1 << 40])
BAD_HEADERS.entry("dimension_fraction", "shape", shape=[32.0, 32])
BAD_HEADERS.entry("dimensions_too_many", "shape", shape=[1] * 17)
BAD_HEADERS.entry("dtype_unknown", "dtype", "F31", dtype="F31")
BAD_HEADERS.entry("dtype_missing", "dtype", dtype=None)
BAD_HEADERS.entry("dtype_of_integers", "I32", dtype="I32")
BAD_HEADERS.entry("dtype_of_fewer_bytes", "F16", dtype="F16")
BAD_HEADERS.header("header_not_json", b"{tensors: 3}", "not valid JSON")
BAD_HEADERS.header("header_not_utf8", b'{"\xc3\x28": 1}', "UTF-8")
BAD_HEADERS.header("header_too_deep", b'{"a":' * 500_000, "deep")
BAD_HEADERS.header("header_is_a_list", b"[]", "header")
BAD_HEADERS.header("header_without_tensors", {}, "no tensor")
BAD_HEADERS.header(
    "header_of_nothing_but_lists",
    b'{"a":[' + b"[]," * 1_000_000 + b"[]]}",
    "values",
    "at most 1048576",
)
BAD_HEADERS.written(WEIGHTS, "file_empty", b"", "few")
