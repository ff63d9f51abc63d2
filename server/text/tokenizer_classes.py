"""What a folder's tokenizer_class means: transformers builds some tokenizers by class.

Most classes take tokenizer.json as it stands. Those in RECIPES take only its vocabulary, merges and
post-processor, and bring the rest themselves: GPT2Tokenizer splits as GPT-2 did, whatever
tokenizer.json says. Others that do so are refused by name. transformers 5.23 is the reference:
models/auto/tokenization_auto.py and models/*/tokenization_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from server.errors import StartupError
from weights.config.keys import words

Token = str | AddedToken | None
Options = Mapping[str, Any]  # of tokenizer_config.json
Named = Mapping[str, Token]  # special tokens by name


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer.json's "model": its pieces by id, and its merges where it has some."""

    pieces: Mapping[str, int]
    merges: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``build`` makes the tokenizer before special tokens are added, ``finish`` completes it after
    (with the named tokens and all special ones). ``defaults`` are the special tokens that the class
    has where the folder says nothing of them."""

    build: Callable[[Vocabulary, Options, Named], tokenizers.Tokenizer]
    defaults: Mapping[str, str | None]
    finish: Callable[[tokenizers.Tokenizer, Named, Sequence[str]], None] | None = None
    flags: Mapping[str, bool | None] = field(default_factory=dict)  # options read, their defaults


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


def _without_post_processor(backend: tokenizers.Tokenizer, _: Named, __: Sequence[str]) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single="$A:0", pair="$A:0 $B:1", special_tokens=[]
    )


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


_PREFIX = {"add_prefix_space": None}
_ENDS = {"unk_token": END, "bos_token": END, "eos_token": END}

RECIPES: Mapping[str, Recipe] = {
    "GPT2Tokenizer": Recipe(_gpt2, {**_ENDS, "pad_token": None}, None, _PREFIX),
    "GPTNeoXTokenizer": Recipe(
        _gpt_neox, {**_ENDS, "pad_token": "<|padding|>"}, _without_post_processor, _PREFIX
    ),
    "Qwen2Tokenizer": Recipe(
        _qwen2, {**_ENDS, "bos_token": None, "pad_token": END}, _plain_special_tokens, _PREFIX
    ),
    "LlamaTokenizer": Recipe(
        _llama,
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        None,
        {**_PREFIX, "legacy": None},
    ),
    # Without what it makes of a text with <FILL_ME>, which Code Llama's vocabulary has not: such a
    # text is refused.
    "CodeLlamaTokenizer": Recipe(
        _code_llama,
        {
            **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
            **{"prefix_token": "▁<PRE>", "middle_token": "▁<MID>", "suffix_token": "▁<SUF>"},
            **{"eot_token": "▁<EOT>", "fill_token": "<FILL_ME>"},
        },
        None,
        _PREFIX,
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
        {"do_lower_case": None, "tokenize_chinese_chars": None, "strip_accents": None},
    ),
}

# Classes of transformers that change what tokenizer.json says, or do without it, and that are not
# followed here (each with Tokenizer, or TokenizerFast, behind it). A name that is not among them
# and not in RECIPES is none of transformers' own: it takes tokenizer.json as it stands.
UNSERVED = words(
    """
    Albert Bart Barthez Bartpho Basic BertGeneration BertJapanese Bertweet BigBird BioGpt
    Blenderbot BlenderbotSmall ByT5 CLIP CTRL Camembert Canine Character Clvp CodeGen
    Cohere ConvBert Cpm CpmAnt DPRContextEncoder DPRQuestionEncoder DPRReader Deberta DebertaV2
    Dia DistilBert Esm Esmc FNet FSMT FastSpeech2Conformer Flaubert Funnel GPTNeoXJapanese
    GPTSw3 Herbert LED Lasr LayoutLMv2 LayoutLMv3 LayoutXLM Luke Lxmert M2M100 MBart MBart50 MLuke
    MPNet Marian MarkupLM Mecab Mgpstr MobileBert Mvp MyT5 Nllb Nougat OpenAIGPT PLBart Pegasus
    Perceiver Phobert Pop2Piano ProphetNet Qwen3_5 Rag Reformer RemBert RoCBert RoFormer Roberta
    SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter SqueezeBert T5 Tapas Tipsv2 Udop
    VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper Wordpiece XGLM XLM XLMRoberta XLNet
    """
)
_PLAIN = ("PreTrainedTokenizer", "TokenizersBackend")
_OF_MODEL_TYPE = {"gpt2": "GPT2Tokenizer"}  # where no file names a class


def class_of_folder(config: Options, options: Options, *, is_byte_level: bool) -> str | None:
    """The class that takes the place of tokenizer.json's own pipeline, a key of RECIPES; None where
    tokenizer.json stands as it is.

    ``config`` and ``options`` are config.json and tokenizer_config.json; ``is_byte_level`` says
    that tokenizer.json spells bytes (a LlamaTokenizer that does is Llama 3's, which the class
    cannot be).

    Raises:
        StartupError: the class is not followed here, or is the folder's own code; names it.
    """
    declared = options.get("tokenizer_class") or config.get("tokenizer_class")
    if declared is not None and not isinstance(declared, str):
        raise StartupError(f"tokenizer_class must be a name, not {declared!r}")
    model_type = config.get("model_type")
    if declared is None:
        return _OF_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    name = declared.removesuffix("Fast")
    own_code = options.get("auto_map")
    if own_code and name not in RECIPES and name not in _PLAIN and not _is_unserved(name):
        raise StartupError(
            f"tokenizer_config.json: auto_map: {declared} is code of the folder, which is never "
            "run. If tokenizer.json says all of it, set tokenizer_class to "
            '"PreTrainedTokenizerFast" and drop auto_map'
        )
    if _is_unserved(name):
        raise StartupError(
            f"tokenizer_config.json: tokenizer_class {declared} is not served: transformers "
            f"builds it by class and not as tokenizer.json says. Served: {', '.join(RECIPES)}. "
            'If tokenizer.json says all of it, set tokenizer_class to "PreTrainedTokenizerFast"'
        )
    if name == "LlamaTokenizer" and is_byte_level and not own_code:
        return None
    return name if name in RECIPES else None


def _is_unserved(name: str) -> bool:
    return name.removesuffix("Tokenizer") in UNSERVED and name.endswith("Tokenizer")
