"""What clients send that asks for nothing, and what they send that asks for something, as data.

It is written from the documents of the servers whose clients send it, and knows nothing of our
validator.
"""

from __future__ import annotations

from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BOTH = (COMPLETIONS, CHAT)

# Fields that are served, on either route.
SERVED = {
    "model": [""],
    "max_tokens": [],
    "min_tokens": [0],
    "n": [1],
    "temperature": [],
    "top_p": [],
    "top_k": [0, -1],
    "min_p": [0, 0.0],
    "presence_penalty": [0],
    "frequency_penalty": [0],
    "repetition_penalty": [1],
    "stop": ["", []],
    "stop_token_ids": [[]],
    "ignore_eos": [False],
    "seed": [],
    "logit_bias": [{}, []],
    "stream": [False],
    "stream_options": [
        {},
        {"include_usage": False},
        {"include_usage": None, "continuous_usage_stats": None, "include_obfuscation": None},
        {"continuous_usage_stats": False},
        {"include_obfuscation": False},
    ],
    "usage_details": [False],
    "priority": [0],
    "cache_salt": [""],
}
LABELS = {
    "user": ["", "alice"],
    "prompt_cache_key": ["", "session-1"],
    "prompt_cache_retention": ["in_memory", "24h"],
    "safety_identifier": ["hash"],
    "session_id": ["s"],
    "metadata": [{}, {"run": "7", "trace": ""}],
}
# Fields that are not served, on either route.
COMMON = {
    "allowed_token_ids": [[]],
    "bad_words": [[]],
    "best_of": [1],
    "cache_prompt": [True],
    "do_sample": [True],
    "dry_multiplier": [0, 0.0],
    "dry_base": [1.75],
    "dynatemp_range": [0.0],
    "early_stopping": [False],
    "grammar": [""],
    "guided_choice": [[]],
    "guided_decoding_backend": [""],
    "guided_grammar": [""],
    "guided_json": [],
    "guided_regex": [""],
    "id_slot": [-1],
    "include_stop_str_in_output": [False],
    "json_schema": [],
    "kv_transfer_params": [{}],
    "length_penalty": [1, 1.0],
    "logits_processors": [[]],
    "lora": [[]],
    "mirostat": [0],
    "mirostat_eta": [0.1],
    "n_probs": [0],
    "no_repeat_ngram_size": [0],
    "num_beams": [1],
    "post_sampling_probs": [False],
    "prompt_logprobs": [],
    "regex": [""],
    "repeat_penalty": [1.0],
    "request_id": [""],
    "response_format": [{"type": "text"}],
    "return_token_ids": [False],
    "return_tokens_as_token_ids": [False],
    "service_tier": ["auto", "default"],
    "skip_special_tokens": [True],
    "spaces_between_special_tokens": [True, False],
    "store": [False],
    "structured_outputs": [{}],
    "tfs_z": [1],
    "timings_per_token": [False],
    "top_n_sigma": [-1],
    "truncate_prompt_tokens": [],
    "truncation_side": ["left"],
    "typical_p": [1, 1.0],
    "use_beam_search": [False],
    "vllm_xargs": [{}],
    "xtc_probability": [0],
}
OF_COMPLETIONS = {
    "prompt": [],
    "echo": [False],
    "suffix": [""],
    "logprobs": [False],
    "add_special_tokens": [True],
}
OF_CHAT = {
    "messages": [],
    "add_generation_prompt": [True],
    "add_special_tokens": [False],
    "audio": [{}],
    "chat_template": [""],
    "chat_template_kwargs": [{}],
    "continue_final_message": [False],
    "documents": [[]],
    "echo": [False],  # of the other route, and off
    "function_call": ["none", "auto"],
    "functions": [[]],
    "include_reasoning": [True],
    "logprobs": [False],
    "max_completion_tokens": [],
    "mm_processor_kwargs": [{}],
    "modalities": [["text"]],
    "moderation": [{}],
    "parallel_tool_calls": [True, False],
    "prediction": [{}],
    "reasoning_effort": ["none"],
    "suffix": [""],
    "thinking": [{"type": "disabled"}],
    "tool_choice": ["none", "auto"],
    "tools": [[]],
    "top_logprobs": [0],
    "verbosity": ["medium"],
    "web_search_options": [],
}
NOTHING: dict[str, dict[str, list[Any]]] = {
    COMPLETIONS: {**SERVED, **LABELS, **COMMON, **OF_COMPLETIONS},
    CHAT: {**SERVED, **LABELS, **COMMON, **OF_CHAT},
}
REQUIRED = {COMPLETIONS: "prompt", CHAT: "messages"}

# Keys of a message that says "hello", which it says no less with any of them.
MESSAGE_KEYS: list[dict[str, Any]] = [
    {"tool_calls": []},
    {"tool_calls": None, "function_call": None, "refusal": None, "audio": None},
    {"tool_call_id": None, "reasoning_content": None, "reasoning": ""},
    {"id": "msg_1", "status": "completed"},
    {"annotations": []},
    {"annotations": [{"type": "url_citation", "url_citation": {"url": "u"}}]},
    {"cache_control": {"type": "ephemeral"}},
    {"content": [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]},
    {"content": [{"type": "text", "text": "hello", "cache_control": None}]},
    {"name": None},
]

# (routes, what is sent, the words that refuse it, the field that the error and the log name)
REFUSED: list[tuple[tuple[str, ...], dict[str, Any], str, str]] = [
    (BOTH, {"response_format": {"type": "json_object"}}, "JSON modes are not served", ""),
    (
        BOTH,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        'response_format is {"type": "json_schema", "json_schema": {',
        "",
    ),
    (BOTH, {"guided_json": {}}, "JSON modes are not served", ""),
    (BOTH, {"guided_regex": "a+"}, "Structured output is not served", ""),
    (BOTH, {"best_of": 2}, "best of several answers is not served", ""),
    (BOTH, {"best_of": True}, "best of several answers is not served", ""),
    (BOTH, {"use_beam_search": True}, "Beam search is not served", ""),
    (BOTH, {"do_sample": False}, "0 is greedy", ""),
    (BOTH, {"bad_words": ["x"]}, "Forbidden words are not served", ""),
    (BOTH, {"skip_special_tokens": False}, "Special tokens in the answer", ""),
    (BOTH, {"include_stop_str_in_output": True}, "Keeping the stop string", ""),
    (BOTH, {"mirostat": 2}, "This way of sampling is not served", ""),
    (BOTH, {"mirostat": False}, "This way of sampling is not served", ""),
    (BOTH, {"service_tier": "flex"}, "Tiers of service are not served", ""),
    (BOTH, {"store": True}, "Keeping answers is not served", ""),
    (
        BOTH,
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "Padding of chunks is not served",
        "stream_options.include_obfuscation",
    ),
    ((COMPLETIONS,), {"suffix": "x"}, "Filling in the middle is not served", ""),
    ((CHAT,), {"suffix": "x"}, "suffix does not belong to", ""),
    ((CHAT,), {"echo": True}, "echo does not belong to", ""),
    ((COMPLETIONS,), {"tools": [{}]}, "tools does not belong to", ""),
    ((CHAT,), {"tools": [{"type": "function"}]}, "Tools are not served", ""),
    ((CHAT,), {"tool_choice": "required"}, "Tools are not served", ""),
    ((CHAT,), {"functions": [{"name": "f"}]}, "Tools are not served", ""),
    ((CHAT,), {"modalities": ["text", "audio"]}, "Only text is served", ""),
    ((CHAT,), {"web_search_options": {}}, "Searching the web is not served", ""),
    ((CHAT,), {"reasoning_effort": "high"}, "Control of reasoning is not served", ""),
    ((CHAT,), {"verbosity": "low"}, "length in words is not served", ""),
    ((CHAT,), {"chat_template": "{{ x }}"}, "own template is always used", ""),
    ((CHAT,), {"chat_template_kwargs": {"a": 1}}, "Arguments of the chat template", ""),
    ((CHAT,), {"prediction": {"type": "content"}}, "Predicted output is not served", ""),
]
_SAYS = {"role": "user", "content": "hello"}
REFUSED_MESSAGES: list[tuple[dict[str, Any], str, str, str]] = [
    ({**_SAYS, "tool_cals": []}, "unknown", "messages[0].tool_cals", "unknown_parameter"),
    ({**_SAYS, "tool_cals": None}, "unknown", "messages[0].tool_cals", "unknown_parameter"),
    (
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_controll": {}}]},
        "unknown",
        "messages[0].content[0].cache_controll",
        "unknown_parameter",
    ),
    (
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        "Tools are not served",
        "messages[0].tool_calls",
        "unsupported_parameter",
    ),
    (
        {"role": "tool", "content": "a", "tool_call_id": "1"},
        "Tools are not served",
        "messages[0].role",
        "unsupported_parameter",
    ),
    ({**_SAYS, "audio": {"id": "1"}}, "Only text", "messages[0].audio", "unsupported_parameter"),
    (
        {**_SAYS, "refusal": "no"},
        "Refusals of earlier",
        "messages[0].refusal",
        "unsupported_parameter",
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        "Only text is served",
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    (
        {"role": "user", "content": None},
        "missing",
        "messages[0].content",
        "missing_required_parameter",
    ),
    ({**_SAYS, "id": 7}, "must be a string", "messages[0].id", "invalid_type"),
    ({**_SAYS, "id": "x" * 300}, "at most 256", "messages[0].id", "invalid_value"),
    ({**_SAYS, "annotations": [1] * 65}, "at most 64", "messages[0].annotations", "invalid_value"),
]
