"""Small tokenizers of every kind, made by hand: no download, and every id in reach of a test."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from server.text.stages import byte_of_character

WORDS = ("深度", "学习", "是", "hello", "world", ".", ",", "'s", "n't", "do", "not", "a", "e", "é")
SPELLING = {byte: character for character, byte in byte_of_character().items()}


def byte_level() -> tokenizers.Tokenizer:
    """Every byte, some merged halves of characters, one special token."""
    pieces = [SPELLING[byte] for byte in range(256)]
    for text in ("深度学习是", "👩‍👩‍👧", " hello", "naïve"):
        spelled = [SPELLING[byte] for byte in text.encode()]
        pieces += ["".join(spelled[start : start + 2]) for start in range(0, len(spelled) - 1, 2)]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    backend.add_tokens(["plain added é"])
    return backend


def byte_fallback(*, strip: bool = True) -> tokenizers.Tokenizer:
    """SentencePiece style, as Llama 2: ▁ for a space, <0xNN> for what is not in the vocabulary."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for word in ("▁", "▁▁", *(f"▁{word}" for word in WORDS), *WORDS, "\ufffd", "l▁o"):
        vocab.setdefault(word, len(vocab))
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*stages, decoders.Strip(" ", 1, 0)] if strip else stages)
    backend.add_special_tokens(
        [AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return backend


def word_piece() -> tokenizers.Tokenizer:
    """BERT style: ## continues a word, punctuation is closed up."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", *WORDS, *(f"##{word}" for word in WORDS), "?", "!"]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken("[CLS]", special=True)])
    return backend


def metaspace(scheme: str = "always") -> tokenizers.Tokenizer:
    """T5 and XLM style."""
    pieces = ["<unk>", "▁", "▁▁", *WORDS, *(f"▁{word}" for word in WORDS), "a▁b"]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={piece: id for id, piece in enumerate(pieces)}, merges=[])
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return backend


def word_ends() -> tokenizers.Tokenizer:
    """GPT-1 and CLIP style: </w> ends a word."""
    pieces = [*WORDS, *(f"{word}</w>" for word in WORDS)]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={piece: id for id, piece in enumerate(pieces)}, merges=[])
    )
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    return backend


def without_decoder() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(
        models.WordLevel(vocab={word: id for id, word in enumerate(WORDS)}, unk_token="a")
    )


ALL_KINDS = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "byte-fallback without strip": lambda: byte_fallback(strip=False),
    "word-piece": word_piece,
    "metaspace": metaspace,
    "metaspace that keeps the first": lambda: metaspace("never"),
    "word ends": word_ends,
    "no decoder": without_decoder,
}
