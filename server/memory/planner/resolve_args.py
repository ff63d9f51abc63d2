"""What was asked of an engine becomes what it is built with, here and nowhere else. No torch."""

from __future__ import annotations

from kernels.footprint.attention import ASSUMED_THREADS
from server.engine.engine_config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from server.memory.backends.record import Backend
from server.memory.backends.registry import backend_of
from server.memory.engine_args import LEAST_PROMPT_TOKENS, EngineArgs, refuse_few_tokens
from server.memory.flops import token_flops
from weights.formats import FORMATS
from weights.spec import ModelSpec

QUEUED_TOKENS_A_REQUEST = 1024  # what the queue holds, as a mean over its requests
LOGIT_ELEMENTS = 2**21  # rows x vocabulary of logits to hold at once, but a row a sequence
MAX_LOGIT_ROWS = 256  # likewise
MAX_LOGPROBS = 20
_MULTIPLE = 16  # of the tokens that a step is given by itself


def resolve_engine(
    args: EngineArgs, model: ModelSpec, max_model_len: int, num_blocks: int = 1
) -> EngineConfig:
    """Every size for ``model``: what ``args`` leave open is the backend's default.

    The device and the dtype are decided already (server.startup.placement,
    server.startup.dtype_choice); the length and the pool, which depend on memory, are the
    planner's.

    Raises:
        StartupError: a step has fewer tokens than sequences.
        ValueError: the device or the dtype is none that there is.
    """
    backend = backend_of(args)
    threads = args.threads or ASSUMED_THREADS
    seqs = num_seqs(args, backend)
    tokens = args.max_num_batched_tokens or _step_tokens(seqs, threads, backend, model)
    refuse_few_tokens(tokens, seqs)
    format = format_of(args.dtype)
    # A step may lack rows for scoring prompts, which are cut, but never for its sequences' tokens:
    # those that are last in rank would wait until others end.
    to_score = min(MAX_LOGIT_ROWS, LOGIT_ELEMENTS // model.vocab_size)
    return EngineConfig(
        ModelConfig(
            format,
            backend.name,
            args.quantization,
            args.batch_invariant,
            args.ranks,
            threads,
            args.cpu_level,
        ),
        CacheConfig(
            block_size=args.block_size or backend.defaults.block_size,
            num_blocks=num_blocks,
            format=args.kv_cache_dtype or format,
            prefix_caching=args.prefix_caching,
        ),
        SchedulerConfig(
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
            max_model_len=max_model_len,
            max_logit_rows=max(seqs, to_score),
            max_queued_requests=args.max_queued_requests,
            # one prompt of any length can always wait
            max_queued_tokens=max(
                args.max_queued_requests * QUEUED_TOKENS_A_REQUEST, max_model_len
            ),
            queue_timeout_s=args.queue_timeout,
            max_logprobs=min(MAX_LOGPROBS, model.vocab_size - 1),
        ),
    )


def num_seqs(args: EngineArgs, backend: Backend) -> int:
    """Sequences computed at once."""
    return args.max_num_seqs or backend.defaults.max_num_seqs


def _step_tokens(seqs: int, threads: int, backend: Backend, model: ModelSpec) -> int:
    """Tokens of a step where that was left open: a token of each sequence, and of prompts as many
    as may hold up the others.

    A step ends for all of its rows at once. So its work is bounded, and not measured: a chunk's
    length does not depend on what else the machine did when the server was started.
    """
    defaults = backend.defaults
    most = defaults.max_num_batched_tokens
    if defaults.thread_step_flops is not None:
        of_a_token = 2 * token_flops(model).layers
        tokens = threads * defaults.thread_step_flops // of_a_token // _MULTIPLE * _MULTIPLE
        most = min(most, tokens)
    return max(most, seqs + LEAST_PROMPT_TOKENS)


def format_of(dtype: str) -> str:
    """The canonical name of a number format that --dtype names. Raises ValueError for another."""
    for format in FORMATS.values():
        if format.torch_name == dtype:
            return format.name
    raise ValueError(f"{dtype!r} is no number format")
