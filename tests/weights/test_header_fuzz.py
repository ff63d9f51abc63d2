"""Random damage to the files ends in a CheckpointError or in nothing, never in another error."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from tests.weights.folders import INDEX, SHARD, WEIGHTS, write_good_folder
from weights import families
from weights.checkpoint.folder import open_checkpoint
from weights.checkpoint.matching import match
from weights.errors import CheckpointError

ROUNDS = 250
JSON_SCRAPS = (b"null", b"-1", b"1e400", b"[]", b"{}", b'""', b"true", b"9" * 30, b'"\\ud800"')


def inspect(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    family = families.resolve(checkpoint.config)
    match(checkpoint, family, family.spec(checkpoint.config))


def damage(raw: bytes, dice: random.Random) -> bytes:
    """One to three edits near the front, where headers and JSON lie."""
    data = bytearray(raw)
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(min(len(data), 4000))
        kind = dice.randrange(4)
        if kind == 0:
            data[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del data[place : place + dice.randint(1, 40)]
        elif kind == 2:
            scrap = dice.choice(JSON_SCRAPS)
            data[place : place + dice.randint(0, len(scrap))] = scrap
        else:
            data[place : place + 8] = dice.randbytes(8)
    return bytes(data)


@pytest.mark.parametrize("file", [WEIGHTS, INDEX, SHARD, "config.json", "generation_config.json"])
def test_random_damage_is_refused_or_harmless(tmp_path: Path, file: str) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    write_good_folder(good, sharded=file in (INDEX, SHARD))
    shutil.copytree(good, bad)
    raw = (good / file).read_bytes()
    dice = random.Random(file)
    refused = 0
    started = time.process_time()
    for _ in range(ROUNDS):
        (bad / file).write_bytes(damage(raw, dice))
        try:
            inspect(bad)
        except CheckpointError as error:
            refused += 1
            message = str(error)
            assert message.encode("utf-8"), message
            assert str(tmp_path) not in message
    assert refused > ROUNDS // 3
    assert time.process_time() - started < 20.0
