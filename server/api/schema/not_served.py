"""The fields that we know and do not serve, by the sentence that refuses each.

Beside OpenAI's they are those that clients of other servers send (vLLM, SGLang, llama.cpp,
transformers): where they ask for nothing there is no reason to refuse them, and where they ask for
something the refusal can say what.
"""

from __future__ import annotations

from collections.abc import Mapping

from server.api.schema.objects import Key, not_served

NOT_SERVED_BY_BOTH: Mapping[str, Key] = {
    **not_served(
        "JSON modes are not served yet.",
        response_format=({"type": "text"},),
        guided_json=(),  # {} is a schema: any JSON
        json_schema=(),
    ),
    **not_served(
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
    **not_served("Choosing the best of several answers is not served yet.", best_of=(1,)),
    **not_served(
        "Beam search is not served yet.",
        use_beam_search=(False,),
        num_beams=(1,),
        length_penalty=(1,),
        early_stopping=(False,),
    ),
    **not_served("temperature decides whether tokens are drawn: 0 is greedy.", do_sample=(True,)),
    **not_served("max_tokens says how many tokens are generated.", n_predict=()),
    **not_served("Forbidding repeated n-grams is not served yet.", no_repeat_ngram_size=(0,)),
    **not_served("Forbidden words are not served yet.", bad_words=([],)),
    **not_served("Lists of allowed tokens are not served yet.", allowed_token_ids=([],)),
    **not_served("Code from a request is never run.", logits_processors=([],)),
    **not_served(
        "Keeping the stop string in the answer is not served yet.",
        include_stop_str_in_output=(False,),
        no_stop_trim=(False,),
    ),
    **not_served(
        "Special tokens in the answer's text are not served yet.",
        skip_special_tokens=(True,),
        spaces_between_special_tokens=(True, False),  # there are none to put spaces between
    ),
    **not_served(
        "Cutting prompts short is not served yet.",
        truncate_prompt_tokens=(),
        truncation_side=("left", "right"),  # of what is not cut
        n_keep=(0, -1),
    ),
    **not_served(
        "Log-probabilities of the prompt come with echo and logprobs; this field is not served.",
        prompt_logprobs=(),
    ),
    **not_served("Log-probabilities of chosen ids are not served yet.", logprob_token_ids=([],)),
    **not_served("llama.cpp's log-probabilities are not served: use logprobs.", n_probs=(0,)),
    **not_served(
        "Additional figures and ids in the answer are not served yet.",
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
    **not_served(
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
    **not_served(
        "The repetition penalty is called repetition_penalty, and covers the whole text.",
        repeat_penalty=(1,),
        repeat_last_n=(64, -1),
    ),
    **not_served("Time limits for an answer are not served yet.", t_max_predict_ms=(0,)),
    **not_served("Limits on indentation are not served.", n_indent=(0,)),
    **not_served("All requests share the prefixes that are cached.", cache_prompt=(True,)),
    **not_served("The server places requests itself.", id_slot=(-1,)),
    **not_served("Adapters are not served yet.", lora=([],), lora_path=("",)),
    **not_served("A request's own id belongs in the header X-Request-Id.", request_id=("",)),
    **not_served("Prompt embeddings are not served yet.", prompt_embeds=([],)),
    **not_served("Disaggregated serving is not supported.", kv_transfer_params=({},)),
    **not_served("Arguments of extensions are not served.", vllm_xargs=({},)),
    **not_served("Keeping answers is not served.", store=(False,)),
    **not_served("Service tiers are not served.", service_tier=("auto", "default")),
    **not_served(
        "Control of the prompt cache is not served yet.",
        prompt_cache_options=({}, {"mode": "implicit"}),
    ),
    **not_served("Moderation is not served.", moderation=({},)),
}

NOT_SERVED_BY_COMPLETIONS: Mapping[str, Key] = {
    **not_served("Filling in the middle is not served yet.", suffix=("",)),
    **not_served("Prompts without special tokens are not served yet.", add_special_tokens=(True,)),
}

NOT_SERVED_BY_CHATS: Mapping[str, Key] = {
    **not_served(
        "Tools are not served yet.",
        tools=([],),
        tool_choice=("none", "auto"),  # there are none to choose from
        parallel_tool_calls=(True, False),
        functions=([],),
        function_call=("none", "auto"),
    ),
    **not_served("Only text is served.", modalities=(["text"], []), audio=({},)),
    **not_served(
        "Only text is served.",
        mm_processor_kwargs=({},),
        media_io_kwargs=({},),
    ),
    **not_served("Predicted output is not served yet.", prediction=({},)),
    **not_served("Searching the web is not served.", web_search_options=()),  # {} asks for it
    **not_served(
        "Control of reasoning is not served yet.",
        reasoning_effort=("none",),
        reasoning_format=("none", "auto"),
        thinking=({"type": "disabled"},),
        thinking_token_budget=(),
        include_reasoning=(True,),
        separate_reasoning=(True, False),  # no answer is split
        stream_reasoning=(True, False),
    ),
    **not_served("Control of an answer's length in words is not served.", verbosity=("medium",)),
    **not_served(
        "The model's own template is always used: one from a request is refused.",
        chat_template=("",),
    ),
    **not_served("Arguments of the chat template are not served yet.", chat_template_kwargs=({},)),
    **not_served("Documents of the chat template are not served yet.", documents=([],)),
    **not_served(
        "Continuing the last message is not served yet.",
        add_generation_prompt=(True,),
        continue_final_message=(False,),
    ),
    **not_served(
        "The template writes a chat's special tokens: further ones are not served.",
        add_special_tokens=(False,),
    ),
}
