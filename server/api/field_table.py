"""The one table of request fields: name, kind, range, default, where each applies, and what of it
asks for nothing.

Beside OpenAI's fields it holds those that clients of other servers send (vLLM, SGLang, llama.cpp,
transformers): where they ask for nothing there is no reason to refuse them, and where they ask for
something the refusal can say what.
"""

from __future__ import annotations

from enum import Enum

from server.api.checks import (
    Biases,
    Boolean,
    Integer,
    Number,
    Options,
    Prompt,
    Stops,
    Text,
    TokenIds,
)
from server.api.field import Field, FieldTable, not_served
from server.api.label_checks import Label, Labels
from server.api.messages import Messages
from server.engine.sampling_limits import LOGIT_BIAS, SAMPLING_RANGES


class Route(Enum):
    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"


SOME_TEXT = Text(1, 1 << 24)
MODEL_NAME = Text(1, 1024)
LABEL = Label(1024)  # changes nothing: for the client's own books

TEMPERATURE = Number(SAMPLING_RANGES["temperature"])
TOP_P = Number(SAMPLING_RANGES["top_p"])
TOP_K = Integer(1, (1 << 31) - 1, also=(-1, 0))
MIN_P = Number(SAMPLING_RANGES["min_p"])
PRESENCE_PENALTY = Number(SAMPLING_RANGES["presence_penalty"])
FREQUENCY_PENALTY = Number(SAMPLING_RANGES["frequency_penalty"])
REPETITION_PENALTY = Number(SAMPLING_RANGES["repetition_penalty"])

# Evaluation harnesses send 5 and more; OpenAI's own bound is 4.
MAX_STOPS = 16

_SERVED_BY_BOTH = (
    Field("model", MODEL_NAME, nothing=("",)),  # one model is served: it may be left out
    Field("max_tokens", Integer(0, "max_model_len")),
    Field("max_completion_tokens", Integer(0, "max_model_len")),
    Field("min_tokens", Integer(0, "max_model_len"), default=0),
    Field("n", Integer(1, "max_n"), default=1),
    Field("temperature", TEMPERATURE),
    Field("top_p", TOP_P),
    Field("top_k", TOP_K),
    Field("min_p", MIN_P),
    Field("presence_penalty", PRESENCE_PENALTY, default=0.0),
    Field("frequency_penalty", FREQUENCY_PENALTY, default=0.0),
    Field("repetition_penalty", REPETITION_PENALTY),
    Field("stop", Stops(MAX_STOPS, Text(1, 1000)), default=(), nothing=("",)),
    Field("stop_token_ids", TokenIds(0, 64), default=()),
    Field("ignore_eos", Boolean(), default=False),
    Field("seed", Integer(-(1 << 63), (1 << 63) - 1)),
    Field("logit_bias", Biases(1024, Number(LOGIT_BIAS)), default=(), nothing=([],)),
    Field("stream", Boolean(), default=False),
    Field(
        "stream_options",
        Options(
            FieldTable(
                (
                    Field("include_usage", Boolean(), default=False),
                    Field("continuous_usage_stats", Boolean(), default=False),
                    *not_served("Padding of chunks is not served.", include_obfuscation=(False,)),
                )
            )
        ),
        default={},
    ),
    Field("usage_details", Boolean(), default=False),
    Field("priority", Integer(-(1 << 31), (1 << 31) - 1), default=0),
    Field("cache_salt", Text(1, 256), default="", nothing=("",)),
    Field("user", LABEL),
    Field("metadata", Labels(16, Label(64), Label(512))),
    Field("prompt_cache_key", LABEL),
    Field("prompt_cache_retention", LABEL),
    Field("safety_identifier", LABEL),
    Field("session_id", LABEL),
)

_NOT_SERVED_BY_BOTH = (
    *not_served(
        "JSON modes are not served yet.",
        response_format=({"type": "text"},),
        guided_json=(),  # {} is a schema: any JSON
        json_schema=(),
    ),
    *not_served(
        "Structured output is not served yet.",
        structured_outputs=({},),
        guided_choice=([],),
        guided_decoding_backend=("",),
        guided_grammar=("",),
        guided_regex=("",),
        guided_whitespace_pattern=("",),
        ebnf=("",),
        grammar=("",),
        regex=("",),
    ),
    *not_served("Choosing the best of several answers is not served yet.", best_of=(1,)),
    *not_served(
        "Beam search is not served yet.",
        use_beam_search=(False,),
        num_beams=(1,),
        length_penalty=(1,),
        early_stopping=(False,),
    ),
    *not_served("temperature decides whether tokens are drawn: 0 is greedy.", do_sample=(True,)),
    *not_served("max_tokens says how many tokens are generated.", n_predict=()),
    *not_served("Forbidding repeated n-grams is not served yet.", no_repeat_ngram_size=(0,)),
    *not_served("Forbidden words are not served yet.", bad_words=([],)),
    *not_served("Lists of allowed tokens are not served yet.", allowed_token_ids=([],)),
    *not_served("Code from a request is never run.", logits_processors=([],)),
    *not_served(
        "Keeping the stop string in the answer is not served yet.",
        include_stop_str_in_output=(False,),
        no_stop_trim=(False,),
    ),
    *not_served(
        "Special tokens in the answer's text are not served yet.",
        skip_special_tokens=(True,),
        spaces_between_special_tokens=(True, False),  # there are none to put spaces between
    ),
    *not_served(
        "Cutting prompts short is not served yet.",
        truncate_prompt_tokens=(),
        truncation_side=("left", "right"),  # of what is not cut
        n_keep=(0, -1),
    ),
    *not_served(
        "Log-probabilities of the prompt come with echo and logprobs; this field is not served.",
        prompt_logprobs=(),
    ),
    *not_served("Log-probabilities of chosen ids are not served yet.", logprob_token_ids=([],)),
    *not_served("llama.cpp's log-probabilities are not served: use logprobs.", n_probs=(0,)),
    *not_served(
        "Further figures and ids in the answer are not served yet.",
        return_hidden_states=(False,),
        return_prompt_text=(False,),
        return_progress=(False,),
        return_token_ids=(False,),
        return_token_offsets=(False,),
        return_tokens=(False,),
        return_tokens_as_token_ids=(False,),
        post_sampling_probs=(False,),
        response_fields=([],),
        timings_per_token=(False,),
    ),
    *not_served(
        "This way of sampling is not served yet.",
        dry_allowed_length=(2,),
        dry_base=(1.75,),
        dry_multiplier=(0,),
        dry_penalty_last_n=(-1,),
        dynatemp_exponent=(1,),
        dynatemp_range=(0,),
        epsilon_cutoff=(0,),
        eta_cutoff=(0,),
        min_keep=(0, 1),
        mirostat=(0,),
        mirostat_eta=(0.1,),
        mirostat_tau=(5,),
        penalty_alpha=(0,),
        repetition_detection=(),
        samplers=([],),
        tfs_z=(1,),
        top_a=(0,),
        top_n_sigma=(-1,),
        typical_p=(1,),
        xtc_probability=(0,),
        xtc_threshold=(0.1,),
    ),
    *not_served(
        "The penalty of repetition is called repetition_penalty, and reaches the whole text.",
        repeat_penalty=(1,),
        repeat_last_n=(64, -1),
    ),
    *not_served("A bound on the time of an answer is not served yet.", t_max_predict_ms=(0,)),
    *not_served("Bounds on indentation are not served.", n_indent=(0,)),
    *not_served("All requests share the prefixes that are cached.", cache_prompt=(True,)),
    *not_served("The server places requests itself.", id_slot=(-1,)),
    *not_served("Adapters are not served yet.", lora=([],), lora_path=("",)),
    *not_served("A request's own id belongs in the header X-Request-Id.", request_id=("",)),
    *not_served("Prompts of vectors are not served yet.", prompt_embeds=([],)),
    *not_served("Disaggregated serving is not served.", kv_transfer_params=({},)),
    *not_served("Arguments of extensions are not served.", vllm_xargs=({},)),
    *not_served("Keeping answers is not served.", store=(False,)),
    *not_served("Tiers of service are not served.", service_tier=("auto", "default")),
    *not_served(
        "Control of the prompt cache is not served yet.",
        prompt_cache_options=({}, {"mode": "implicit"}),
    ),
    *not_served("Moderation is not served.", moderation=({},)),
)

_COMPLETIONS_ONLY = (
    Field("prompt", Prompt(SOME_TEXT, TokenIds(1, 1 << 24)), required=True),
    Field("logprobs", Integer(0, "max_logprobs"), nothing=(False,)),
    Field("echo", Boolean(), default=False),
    *not_served("Filling in the middle is not served yet.", suffix=("",)),
    *not_served("Prompts without special tokens are not served yet.", add_special_tokens=(True,)),
)

_CHAT_ONLY = (
    Field("messages", Messages(4096), required=True),
    Field("logprobs", Boolean(), default=False),
    Field("top_logprobs", Integer(0, "max_logprobs"), nothing=(0,)),
    *not_served(
        "Tools are not served yet.",
        tools=([],),
        tool_choice=("none", "auto"),  # there are none to choose from
        parallel_tool_calls=(True, False),
        functions=([],),
        function_call=("none", "auto"),
    ),
    *not_served("Only text is served.", modalities=(["text"], []), audio=({},)),
    *not_served(
        "Only text is served.",
        mm_processor_kwargs=({},),
        media_io_kwargs=({},),
    ),
    *not_served("Predicted output is not served yet.", prediction=({},)),
    *not_served("Searching the web is not served.", web_search_options=()),  # {} asks for it
    *not_served(
        "Control of reasoning is not served yet.",
        reasoning_effort=("none",),
        reasoning_format=("none", "auto"),
        thinking=({"type": "disabled"},),
        thinking_token_budget=(),
        include_reasoning=(True,),
        separate_reasoning=(True, False),  # no answer is split
        stream_reasoning=(True, False),
    ),
    *not_served("Control of an answer's length in words is not served.", verbosity=("medium",)),
    *not_served(
        "The model's own template is always used: one from a request is refused.",
        chat_template=("",),
    ),
    *not_served("Arguments of the chat template are not served yet.", chat_template_kwargs=({},)),
    *not_served("Documents of the chat template are not served yet.", documents=([],)),
    *not_served(
        "Continuing the last message is not served yet.",
        add_generation_prompt=(True,),
        continue_final_message=(False,),
    ),
    *not_served(
        "The template writes a chat's special tokens: further ones are not served.",
        add_special_tokens=(False,),
    ),
)

_TABLES = {
    Route.COMPLETIONS: FieldTable((*_COMPLETIONS_ONLY, *_SERVED_BY_BOTH, *_NOT_SERVED_BY_BOTH)),
    Route.CHAT: FieldTable((*_CHAT_ONLY, *_SERVED_BY_BOTH, *_NOT_SERVED_BY_BOTH)),
}
_ELSEWHERE = {
    Route.COMPLETIONS: FieldTable(_CHAT_ONLY),
    Route.CHAT: FieldTable(_COMPLETIONS_ONLY),
}


def table(route: Route) -> FieldTable:
    """The fields of one route by name."""
    return _TABLES[route]


def elsewhere(route: Route) -> FieldTable:
    """The fields of the other route alone, by name."""
    return _ELSEWHERE[route]
