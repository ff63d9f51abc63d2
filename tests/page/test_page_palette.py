"""The page's colours, computed: text that can be read, bands that can be told apart."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from server.memory.accounting.reading import KV_PARTS
from server.memory.kinds import MemoryKind

PAGE = Path(__file__).parents[2] / "server" / "api" / "ui"
TEXT_ON_PAPER = ("ink", "quiet", "accent", "alarm", "wait")
TEXT_CONTRAST, SHAPE_CONTRAST = 4.5, 3.0  # of WCAG 2.2, level AA
DISTANCE = 12.0  # in CIE Lab between two plain bands, whatever eyes look at them
# Machado, Oliveira and Fernandes 2009: what is left of linear light without one kind of cone.
SIGHTS = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
Light = tuple[float, ...]


def palette(theme: str) -> dict[str, Light]:
    """The style sheet's variables as linear light; the dark ones replace some."""
    css = (PAGE / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    text = light + (dark if theme == "dark" else "")
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6});", text)
    return {name: linear(value) for name, value in found}


def linear(value: str) -> Light:
    channels = [int(value[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)


def contrast(one: Light, other: Light) -> float:
    shares = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in (one, other)]
    return (max(shares) + 0.05) / (min(shares) + 0.05)


def lab(light: Light) -> Light:
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    x, y, z = (product(row, light) / most for row, most in zip(rows, white, strict=True))
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return (116 * y - 16, 500 * (x - y), 200 * (y - z))


def product(row: Light, light: Light) -> float:
    return sum(a * b for a, b in zip(row, light, strict=True))


def seen(light: Light, sight: str) -> Light:
    return tuple(min(1.0, max(0.0, product(row, light))) for row in SIGHTS[sight])


def distance(one: Light, other: Light, sight: str) -> float:
    pairs = zip(lab(seen(one, sight)), lab(seen(other, sight)), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) ** 0.5


def bands() -> list[str]:
    """Every band that /memory can make, by its id."""
    kinds = [str(kind) for kind in MemoryKind if kind is not MemoryKind.KV_CACHE]
    return [*kinds, *(f"kv_cache-{part}" for part in KV_PARTS)]


def marks() -> dict[str, str]:
    """The pattern of each band that has one."""
    text = (PAGE / "svg.js").read_text()
    table = re.search(r"const MARK_OF = \{(.*?)\};", text, re.DOTALL)
    assert table is not None
    return dict(re.findall(r'"?([\w-]+)"?: "(\w+)",', table[1]))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(theme: str) -> None:
    colours = palette(theme)
    for ground in ("paper", "sheet"):
        for name in TEXT_ON_PAPER:
            assert contrast(colours[name], colours[ground]) >= TEXT_CONTRAST, (name, ground)
        assert contrast(colours["edge"], colours[ground]) >= SHAPE_CONTRAST, ground
    assert contrast(colours["accent-ink"], colours["accent"]) >= TEXT_CONTRAST


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_band_stands_out_from_the_ground(theme: str) -> None:
    colours = palette(theme)
    for band in (*bands(), "kv_cache", "unknown"):
        ratio = contrast(colours[f"band-{band}"], colours["paper"])
        assert ratio >= SHAPE_CONTRAST, (band, round(ratio, 2))


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_two_bands_differ_in_pattern_or_in_colour(theme: str, sight: str) -> None:
    colours, marked = palette(theme), marks()
    alike = [
        (one, other, round(difference, 1))
        for one, other in combinations(bands(), 2)
        if marked.get(one) == marked.get(other)
        and (difference := distance(colours[f"band-{one}"], colours[f"band-{other}"], sight))
        < DISTANCE
    ]
    assert alike == []


def test_every_mark_is_of_a_band() -> None:
    assert set(marks()) <= set(bands())
