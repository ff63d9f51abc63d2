"""Small tokenizers trained on a few lines, in the styles that checkpoints have."""

from __future__ import annotations

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from server.text.stages import byte_of_character

CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "hello world, hello there; what is new? it's the 1st of 12 days!",
    "def add(a, b):\n    return a + b\n\n\tprint('naïve café')",
    "Don't do that. We'll see; they've gone, I'm sure 3.14 isn't 42",
    "深度学习是人工智能的一部分 深度 学习",
] * 4


def byte_level() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(byte_of_character())
    backend.train_from_iterator(
        CORPUS, BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def split_as(words: str, *, digits: bool = False) -> tokenizers.Tokenizer:
    """Byte-level, split by a regular expression as Llama 3 and Qwen 2.5 are, or digits apart; the
    first token is in the post-processor."""
    backend = byte_level()
    cuts: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(tokenizers.Regex(words), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    if digits:
        cuts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    backend.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    first = "<|begin_of_text|>"
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=[first, "$A"], special_tokens=[(first, backend.token_to_id(first))]
            ),
        ]
    )
    return backend


def llama_3_like() -> tokenizers.Tokenizer:
    return split_as(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def digits_apart() -> tokenizers.Tokenizer:
    return split_as(r"\s+(?!\S)|\s?\p{L}+|\s+|[^\s\p{L}]+", digits=True)


def metaspace(scheme: str, *, split: bool) -> tokenizers.Tokenizer:
    """Llama's pieces under another Metaspace."""
    backend = llama_like()
    backend.normalizer = normalizers.NFKC() if split else None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    return backend


def metaspace_always() -> tokenizers.Tokenizer:
    return metaspace("always", split=True)


def metaspace_never() -> tokenizers.Tokenizer:
    return metaspace("never", split=False)


def llama_like(*, old: bool = False) -> tokenizers.Tokenizer:
    """``old``: with a normalizer, as Llama 2 was saved; else with Metaspace."""
    words = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(
        [text for text in CORPUS if text.isascii()],
        BpeTrainer(vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    model = json.loads(words.to_str())["model"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in model["vocab"]:
        vocab.setdefault(piece, len(vocab))
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*stages, decoders.Strip(" ", 1, 0)])
    if old:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return backend


def old_llama_like() -> tokenizers.Tokenizer:
    return llama_like(old=True)


def word_piece() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        CORPUS, WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    return backend


def unigram() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        CORPUS,
        UnigramTrainer(
            vocab_size=130,
            special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    return backend
