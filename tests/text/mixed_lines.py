"""Lines of many scripts, the same in every run: what tokenizers are compared on."""

from __future__ import annotations

import random
from collections.abc import Sequence

SCRIPTS = (
    "The quick brown fox don't we'll I'M they've JUMPS over 12345 lazy dogs; isn't it?",
    "Příliš žluťoučký kůň úpěl ďábelské ódy, naïve façade, Zoë's Ærøskøbing, İstanbul ıŞıK",
    "Съешь же ещё этих мягких французских булок да выпей чаю Ёлка йод",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία ὦ ἄνδρες Ἀθηναῖοι τέλος",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ١٢٣ لا",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה שָׁלוֹם",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण क्षत्रिय १२३",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน น้ำ",
    "深度学习是人工智能的一部分，视野无限广，窗外有蓝天。「你好」！",
    "いろはにほへと ちりぬるを カタカナ ﾊﾝｶｸ ｶﾞ 漢字かな交じり文です。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다 한글",
)
EMOJI = ("👩‍👩‍👧‍👦", "👍🏽", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "🇨🇿🇯🇵", "🙂", "1️⃣", "☃")
CODE = (
    "def f(a: int) -> str:\n    return f'{a!r}'\n\n\tpass",
    "for (int i = 0; i < n; ++i) { x[i] += y->z * 0x1F; } // end",
    '{"key": [1, 2.5e-3, null], "π": "\\u00e9\\n"}',
    "SELECT * FROM t WHERE a>=10 AND b!='x';--",
    '<div class="a">&nbsp;</div>\r\n<!-- x -->',
    "https://example.org/a_b?c=d&e=%20#f user@host.example $PATH ~/.bashrc",
)
NUMBERS = (
    "0",
    "7",
    "42",
    "1234567890",
    "3.14159",
    "-1e-9",
    "1,000,000",
    "٣٫١٤",
    "½",
    "Ⅻ",
    "²",
    "१२३४",
)
SPACES = (
    *(" " * count for count in (1, 2, 3, 4, 7, 8, 16)),
    *(
        "\t",
        "\n",
        "\r\n",
        "\n\n\n",
        "\t \t",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\u200b",
        "\u2028",
        "\x0b",
    ),
)
CONTROLS = (
    "\x00",
    "\x01",
    "\x1b[0m",
    "\x7f",
    "\x85",
    "\ufeff",
    "\u00ad",
    "\u202e",
    "\u2060",
    "\ufffd",
)
MARKS = ("e\u0301", "A\u030a", "o\u0302\u0301\u0323", "ﬁ", "ǆ", "Å", "ﷺ", "ͅ", "\u0301x", "क़", "が")
TOKENS = (
    *("<s>", "</s>", "<unk>", "<pad>", "<mask>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(
        "<bos>",
        "<eos>",
        "<start_of_turn>",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "[INST]",
        "<0x41>",
        "<0x0A>",
    ),
    *("▁", "▁▁", "Ġ", "Ċ", "</w>", "##", "<tool>", "[MASK]", "<BOS_TOKEN>", "<", "s>", "<|", "⁇"),
)
KINDS = (EMOJI, CODE, NUMBERS, SPACES, CONTROLS, MARKS, TOKENS)


def mixed_lines(count: int = 2000) -> list[str]:
    """``count`` lines: each piece alone first, then runs of pieces of one or many kinds."""
    pick = random.Random(23)
    words = [script.split(" ") for script in SCRIPTS]
    alone = ["", *SCRIPTS, *(piece for kind in KINDS for piece in kind)]
    lines = [*alone, *(f" {piece}" for piece in alone), *(f"{piece} " for piece in alone)]
    lines += [f"a{piece}b" for piece in alone]
    while len(lines) < count:
        lines.append(_line(pick, words))
    return lines[:count]


def _line(pick: random.Random, words: Sequence[Sequence[str]]) -> str:
    script = pick.choice(words)
    parts: list[str] = []
    for _ in range(pick.randint(1, 9)):
        chance = pick.random()
        if chance < 0.55:
            part = pick.choice(script)
        elif chance < 0.7:
            part = pick.choice(pick.choice(words))
        else:
            part = pick.choice(pick.choice(KINDS))
        parts += [part, pick.choice(("", " ", " ", " ", "  ", ", ", "\n"))]
    return "".join(parts)


def corpus() -> list[str]:
    """What the small tokenizers of the tests are trained on."""
    return [*SCRIPTS, *CODE, " ".join(NUMBERS)] * 3
