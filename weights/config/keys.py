"""Keys of config.json that mean nothing to the arithmetic, and words that announce arithmetic."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of ``text`` as a set."""
    return frozenset(text.split())


HARMLESS_KEYS = words(
    """
    architectures model_type torch_dtype dtype use_cache initializer_range pad_token_id
    sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens bad_words_ids
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
    torchscript use_bfloat16 tf_legacy_loss id2label label2id num_labels problem_type
    task_specific_params finetuning_task prefix tokenizer_class remove_invalid_values
    chunk_size_feed_forward is_decoder do_sample max_length min_length max_new_tokens
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty encoder_no_repeat_ngram_size no_repeat_ngram_size length_penalty
    exponential_decay_length_penalty num_return_sequences gradient_checkpointing
    attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob dropout
    resid_dropout embd_dropout neftune_noise_alpha unsloth_version unsloth_fixed
    """
)

ARITHMETIC_WORDS = words(
    """
    act activation alibi alpha attention attn beta bias block blocks cap capping clip conv cross
    decoder dim dims embd embed embedding embeddings encoder epsilon eps expert experts factor ffn
    gate gated glu head heads hidden hyper inner interleave interleaved intermediate kernel key kv
    lambda latent layer layernorm layers ln logit logits lora mamba mlp moe mrope mscale mtp
    multiplier nope norm normalization normalize ntk parallel partial position positional positions
    proj projection pruned qk qkv quant quantization query rank reorder residual rms rope rotary
    routed router scalar scale scaled scales scaling shared sink sinks size sliding softcap
    softcapping softmax sparse ssm swiglu temperature theta tie tied type upcast value vision
    window xpos yarn
    """
)
