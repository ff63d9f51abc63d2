"""Train the demo model's byte-level BPE tokenizer and write its Hugging Face files.

Run `python -m weights.demo.tokenizer --out weights/demo/checkpoint` to train it on the
training part of the corpus and write `tokenizer.json` and `tokenizer_config.json`.

Every byte is in the vocabulary, so any UTF-8 text comes back byte for byte. The pieces
that merges may not cross are chosen for Python: a line break goes with the indentation
after it, a word with the one sign or space before it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from weights.demo.corpus import read_heldout, read_library, split_library

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
SPECIAL = (END_OF_TEXT, PADDING)
END_OF_TEXT_ID = 0
PADDING_ID = 1

PIECES = "|".join(
    (
        r"(?:[ \t]*\r?\n)+[ \t]*",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r" ?\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+",
        r"[ \t]+(?!\S)",
        r"\s",
    )
)

# Role names and line breaks only: the model was never taught to answer, the template is
# there so that chat endpoints can be tried with it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Learn the merges from the texts."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(PIECES), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_config(context: int) -> dict[str, object]:
    """Return what `tokenizer_config.json` holds."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write both files of the tokenizer into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(tokenizer_config(context), indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the folder's tokenizer."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    """Train, write, and say how many bytes a token covers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    split = split_library(read_library(), read_heldout())
    tokenizer = train_tokenizer(document.text for document in split.train)
    save_tokenizer(tokenizer, options.out, options.context)
    for name, part in (("train", split.train), ("dev", split.dev)):
        encoded = tokenizer.encode_batch_fast([document.text for document in part])
        tokens = sum(len(row.ids) for row in encoded)
        print(f"{name}: {tokens} tokens, {sum(d.size for d in part) / tokens:.3f} bytes each")


if __name__ == "__main__":
    main()
