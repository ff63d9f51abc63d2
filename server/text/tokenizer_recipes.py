"""How transformers builds a tokenizer by class, from no more than a vocabulary and its merges.

A class in RECIPES brings how text is normalized, split and decoded: GPT2Tokenizer splits as GPT-2
did, whatever tokenizer.json says. transformers 5.23 is the reference: models/*/tokenization_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

VOCAB_FILE, SENTENCEPIECE_FILE = "vocab.json", "tokenizer.model"

Token = str | AddedToken | None
Options = Mapping[str, Any]  # of tokenizer_config.json
Named = Mapping[str, Token]  # special tokens by name


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a folder's files spell: pieces with their ids, and merges, first ones first."""

    pieces: Mapping[str, int]
    merges: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``build`` makes the tokenizer before special tokens are added, ``finish`` completes it after
    (with the named tokens and all special ones). ``defaults`` are the special tokens that the class
    has where the folder says nothing of them, ``flags`` the options that it reads. A post-processor
    of tokenizer.json stays unless ``drops_post_processor``. ``vocabulary`` is the file that the
    class is converted from where there is no tokenizer.json; None where it is not."""

    build: Callable[[Vocabulary, Options, Named], tokenizers.Tokenizer]
    defaults: Mapping[str, str | None]
    finish: Callable[[tokenizers.Tokenizer, Named, Sequence[str]], None] | None = None
    flags: Sequence[str] = ()
    drops_post_processor: bool = False
    vocabulary: str | None = VOCAB_FILE


END = "<|endoftext|>"
SPACE = "▁"


def _byte_level_bpe(text: Vocabulary) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(text.pieces),
            merges=list(text.merges),
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _gpt2(text: Vocabulary, options: Options, _: Named) -> tokenizers.Tokenizer:
    backend = _byte_level_bpe(text)
    prefix = bool(options.get("add_prefix_space"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return backend


def _gpt_neox(text: Vocabulary, options: Options, named: Named) -> tokenizers.Tokenizer:
    backend = _gpt2(text, options, named)
    backend.normalizer = normalizers.NFC()
    return backend


def _cohere(text: Vocabulary, options: Options, _: Named) -> tokenizers.Tokenizer:
    backend = _byte_level_bpe(text)
    prefix = bool(options.get("add_prefix_space"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        ]
    )
    return backend


def _found_as_written(backend: tokenizers.Tokenizer, _: Named, special: Sequence[str]) -> None:
    """Special tokens are looked for in the text before it is normalized."""
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )


def _openai_gpt(text: Vocabulary, _: Options, named: Named) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(text.pieces),
            merges=list(text.merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=str(named["unk_token"]),
        )
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    return backend


_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen2(text: Vocabulary, options: Options, _: Named) -> tokenizers.Tokenizer:
    backend = _byte_level_bpe(text)
    backend.normalizer = normalizers.NFC()
    prefix = bool(options.get("add_prefix_space"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    return backend


def _plain_special_tokens(backend: tokenizers.Tokenizer, _: Named, special: Sequence[str]) -> None:
    backend.add_tokens([AddedToken(token, special=True) for token in special])


def _llama(text: Vocabulary, options: Options, _: Named) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(text.pieces), merges=list(text.merges), fuse_unk=True, byte_fallback=True
        )
    )
    prefixed = options.get("add_prefix_space") is not False
    scheme = "never" if not prefixed else "always" if options.get("legacy") else "first"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme=scheme, split=False
    )
    stages = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        stages.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(stages)
    return backend


def _code_llama(text: Vocabulary, options: Options, named: Named) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(text.pieces),
            merges=list(text.merges),
            unk_token=str(named["unk_token"]),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = options.get("add_prefix_space") is not False
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme="first" if prefixed else "never", split=False
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return backend


def _gemma(text: Vocabulary, _: Options, named: Named) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(text.pieces),
            merges=list(text.merges),
            fuse_unk=True,
            unk_token=str(named["unk_token"]),
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def _bert(text: Vocabulary, options: Options, named: Named) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.WordPiece(vocab=dict(text.pieces), unk_token=str(named["unk_token"]))
    )
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
        strip_accents=options.get("strip_accents"),
        lowercase=bool(options.get("do_lower_case", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _between_cls_and_sep(backend: tokenizers.Tokenizer, named: Named, _: Sequence[str]) -> None:
    first, last = str(named["cls_token"]), str(named["sep_token"])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (first, last)],
    )


_PREFIX = ("add_prefix_space",)
_ENDS = {"unk_token": END, "bos_token": END, "eos_token": END}

_BRACKETS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}

RECIPES: Mapping[str, Recipe] = {
    "GPT2Tokenizer": Recipe(_gpt2, {**_ENDS, "pad_token": None}, flags=_PREFIX),
    "CodeGenTokenizer": Recipe(_gpt2, {**_ENDS, "pad_token": None}, flags=_PREFIX),
    "GPTNeoXTokenizer": Recipe(
        _gpt_neox, {**_ENDS, "pad_token": "<|padding|>"}, flags=_PREFIX, drops_post_processor=True
    ),
    "Qwen2Tokenizer": Recipe(
        _qwen2,
        {**_ENDS, "bos_token": None, "pad_token": END},
        _plain_special_tokens,
        flags=_PREFIX,
    ),
    "CohereTokenizer": Recipe(
        _cohere,
        {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "sep_token": "<SEP>",
            "mask_token": "<MASK_TOKEN>",
        },
        _found_as_written,
        flags=_PREFIX,
    ),
    "RobertaTokenizer": Recipe(
        _gpt2,
        {
            **_BRACKETS,
            **{"sep_token": "</s>", "cls_token": "<s>", "pad_token": "<pad>"},
            "mask_token": "<mask>",
        },
        _between_cls_and_sep,
        flags=_PREFIX,
    ),
    "OpenAIGPTTokenizer": Recipe(_openai_gpt, {"unk_token": "<unk>"}),
    "LlamaTokenizer": Recipe(
        _llama, _BRACKETS, flags=(*_PREFIX, "legacy"), vocabulary=SENTENCEPIECE_FILE
    ),
    # Without what it makes of a text with <FILL_ME>, which Code Llama's vocabulary has not: such a
    # text is refused.
    "CodeLlamaTokenizer": Recipe(
        _code_llama,
        {
            **_BRACKETS,
            **{"prefix_token": "▁<PRE>", "middle_token": "▁<MID>", "suffix_token": "▁<SUF>"},
            **{"eot_token": "▁<EOT>", "fill_token": "<FILL_ME>"},
        },
        flags=_PREFIX,
        vocabulary=SENTENCEPIECE_FILE,
    ),
    "GemmaTokenizer": Recipe(
        _gemma,
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        vocabulary=SENTENCEPIECE_FILE,
    ),
    "BertTokenizer": Recipe(
        _bert,
        {
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        _between_cls_and_sep,
        flags=("do_lower_case", "tokenize_chinese_chars", "strip_accents"),
        vocabulary=None,
    ),
}
