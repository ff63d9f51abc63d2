"""Which of transformers' classes a folder's tokenizer is of, by the rules of AutoTokenizer.

tokenizer_class and the model's type decide together. Most come to tokenizer.json as it stands;
those in RECIPES take only its vocabulary, merges and post-processor. Others that do so are refused
by name. transformers 5.23 is the reference: models/auto/tokenization_auto.py.
"""

from __future__ import annotations

from server.errors import StartupError
from server.text.tokenizer_recipes import RECIPES, Options
from weights.config.keys import words

# Classes of transformers that change what tokenizer.json says, or do without it, and that are not
# followed here (each with Tokenizer, or TokenizerFast, behind it). A name that is not among them
# and not in RECIPES is none of transformers' own: it takes tokenizer.json as it stands.
UNSERVED = words(
    """
    Albert Bart Barthez Bartpho Basic BertGeneration BertJapanese Bertweet BigBird BioGpt
    Blenderbot BlenderbotSmall ByT5 CLIP CTRL Camembert Canine Character Clvp
    ConvBert Cpm CpmAnt DPRContextEncoder DPRQuestionEncoder DPRReader Deberta DebertaV2
    Dia DistilBert Esm Esmc FNet FSMT FastSpeech2Conformer Flaubert Funnel GPTNeoXJapanese
    GPTSw3 Herbert LED Lasr LayoutLMv2 LayoutLMv3 LayoutXLM Luke Lxmert M2M100 MBart MBart50 MLuke
    MPNet Marian MarkupLM Mecab Mgpstr MobileBert Mvp MyT5 Nllb Nougat PLBart Pegasus
    Perceiver Phobert Pop2Piano ProphetNet Qwen3_5 Rag Reformer RemBert RoCBert RoFormer
    SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter SqueezeBert T5 Tapas Tipsv2 Udop
    VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper Wordpiece XGLM XLM XLMRoberta XLNet
    """
)
_PLAIN = ("PreTrainedTokenizer", "TokenizersBackend")
_AS_IT_STANDS = "TokenizersBackend"
# The class of each model type, where transformers has one; "as it stands" whatever a folder calls
# it. Types that are not here are what tokenizer_class says.
_OF_MODEL_TYPE = {
    **dict.fromkeys(
        words("codegen gpt2 gpt_neo gptj jais2 opt phi starcoder2 dbrx"), "GPT2Tokenizer"
    ),
    **dict.fromkeys(
        words("falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm"),
        "GPTNeoXTokenizer",
    ),
    **dict.fromkeys(
        words(
            """
            qwen2 qwen2_moe qwen2_vl qwen2_5_vl qwen3 qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe
            """
        ),
        "Qwen2Tokenizer",
    ),
    **dict.fromkeys(words("cohere cohere2"), "CohereTokenizer"),
    **dict.fromkeys(
        words("gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma zaya"),
        "GemmaTokenizer",
    ),
    "openai-gpt": "OpenAIGPTTokenizer",
    **dict.fromkeys(
        words(
            """
            arctic ernie4_5 ernie4_5_moe flex_olmo glm glm4 glm4_moe glm4_moe_lite gpt_bigcode
            granite granitemoe granitemoehybrid granitemoeshared hyperclovax internlm2 internlm3
            jamba kimi_linear llava llava_next mimo_v2_flash minicpm3 minimax_m2 ministral
            ministral3 mistral mistral3 mistral_large4 mixtral nemotron olmo2 olmo3 olmo_hybrid
            persimmon phi3 phi3_v phimoe smolvlm stablelm
            """
        ),
        _AS_IT_STANDS,
    ),
}
# Model types whose published folders name a wrong class: the type's own counts.
_OVERRULED = words("qwen2")


def class_of_folder(
    config: Options,
    options: Options,
    *,
    is_byte_level: bool,
    file: str = "tokenizer.json",
    says_all: bool = True,
) -> str | None:
    """The class that takes the place of tokenizer.json's own pipeline, a key of RECIPES; None where
    tokenizer.json stands as it is.

    ``config`` and ``options`` are config.json and tokenizer_config.json; ``is_byte_level`` says
    that tokenizer.json spells bytes (a LlamaTokenizer that does is Llama 3's, which the class
    cannot be). A ``file`` other than tokenizer.json tells less, so that tokenizer_class counts
    where it would not; ``says_all``: a tokenizer can be had of the file without a class.

    Raises:
        StartupError: the class is not followed here, or is the folder's own code; names it.
    """
    declared = options.get("tokenizer_class") or config.get("tokenizer_class")
    if declared is not None and not isinstance(declared, str):
        raise StartupError(f"tokenizer_class must be a name, not {declared!r}")
    model_type = config.get("model_type")
    own = _OF_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    own_code = _own_code(options)
    name = (declared or own or _AS_IT_STANDS).removesuffix("Fast")
    if not own_code and own is not None and name != own:
        if own == _AS_IT_STANDS and file == "tokenizer.json":
            return None
        if model_type in _OVERRULED:
            return own
    if own_code and name not in RECIPES and name not in _PLAIN and not _is_unserved(name):
        raise StartupError(
            f"tokenizer_config.json: auto_map: {declared} is code of the folder, which is never "
            f"run. {_remedy(file, says_all=says_all)} and drop auto_map"
        )
    if _is_unserved(name):
        raise StartupError(
            f"tokenizer_config.json: tokenizer_class {declared} is not served: transformers "
            f"builds it by class. Served: {', '.join(RECIPES)}. "
            f"{_remedy(file, says_all=says_all)}"
        )
    if name == "LlamaTokenizer" and is_byte_level and not own_code:
        return None
    return name if name in RECIPES else None


def _remedy(file: str, *, says_all: bool) -> str:
    if says_all:
        return f'If {file} says all of it, set tokenizer_class to "PreTrainedTokenizerFast"'
    return "Make a tokenizer.json, or set tokenizer_class to one that is served"


def _own_code(options: Options) -> bool:
    given = options.get("auto_map")
    return bool(given.get("AutoTokenizer") if isinstance(given, dict) else given)


def _is_unserved(name: str) -> bool:
    return name.removesuffix("Tokenizer") in UNSERVED and name.endswith("Tokenizer")
