"""The dashboard Engine: what steps are made of, and how well they are filled."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Graph, Query, Row, Stat
from deploy.grafana.queries import lowest, mean, rate, rise, total
from deploy.grafana.shared import BLOCKS_IN_USE, KV_IN_USE, THROWN_AWAY, distribution
from server.metrics import registry as r

_NOW = Row(
    "Now",
    (
        Stat(
            "Engine",
            "Whether the engine of every chosen server takes requests.",
            "none",
            (Query(lowest(r.ENGINE_UP)),),
            texts=(("0", "away", "red"), ("1", "ready", "green")),
        ),
        Stat(
            "Restarts",
            "New engine processes in the last hour. Each restart ended all open requests in an "
            "error.",
            "short",
            (Query(rise(r.RESTARTS, "1h")),),
            thresholds=((0.5, "red"),),
        ),
        Stat(
            "Failed steps",
            "Steps of the last hour that raised an error. A request whose step fails twice is "
            "ended.",
            "short",
            (Query(rise(r.FAILED_STEPS, "1h")),),
            thresholds=((0.5, "red"),),
        ),
        Stat(
            "Preemptions",
            "Sequences of the last hour that gave up their blocks and were computed again, because "
            "the KV cache was full.",
            "short",
            (Query(rise(r.PREEMPTIONS, "1h")),),
            thresholds=((0.5, "yellow"),),
        ),
        Stat(
            "Prompt tokens from the cache",
            "Share of the prompt tokens looked up that were found in the prefix cache and not "
            "computed again.",
            "percentunit",
            (Query(f"{rate(r.PREFIX_HITS)} / {rate(r.PREFIX_QUERIES)}"),),
        ),
        KV_IN_USE,
    ),
)

_STEPS = Row(
    "Steps",
    (
        distribution(
            "Time of a step",
            "A step computes one token for each running sequence and chunks of prompts beside "
            "them. Its time is the gap between two tokens of a stream.",
            r.STEP_SECONDS,
        ),
        Graph(
            "Parts of a step",
            "The mean step, and in it the model's forward pass and the sampling. What is left is "
            "planning and talking to the other process. With overlap on a GPU the parts of two "
            "steps run at the same time.",
            "s",
            (
                Query(mean(r.STEP_SECONDS), "whole step"),
                Query(mean(r.FORWARD_SECONDS), "forward pass"),
                Query(mean(r.SAMPLE_SECONDS), "sampling"),
            ),
            lines=("whole step",),
        ),
        Graph(
            "Steps by server",
            "Steps in a second.",
            "ops",
            (Query(rate(r.STEPS, "instance"), "{{instance}}"),),
        ),
        Graph(
            "Tokens computed",
            "Tokens of prompts and decoded tokens that steps computed in a second, those computed "
            "again after a preemption included.",
            "suffix: tokens/s",
            (Query(rate(r.STEP_TOKENS, "phase"), "{{phase}}"),),
            stacked=True,
        ),
        distribution(
            "Tokens in a step",
            "How full steps are. Near max-num-batched-tokens: prompts keep the machine busy. A "
            "handful: it decodes for few sequences and has room.",
            r.TOKENS_PER_STEP,
            "short",
        ),
        Graph(
            "Failed steps and restarts",
            "Steps that raised an error, and new engine processes, in the last five minutes.",
            "short",
            (
                Query(rise(r.FAILED_STEPS, "5m"), "failed steps"),
                Query(rise(r.RESTARTS, "5m"), "restarts"),
            ),
        ),
    ),
)

_SCHEDULER = Row(
    "Scheduler",
    (
        Graph(
            "Sequences running",
            "Sequences that have a row in the batch, for each server. max-num-seqs is the most "
            "there can be.",
            "short",
            (Query(total(r.SEQUENCES_RUNNING, "instance"), "{{instance}}"),),
        ),
        Graph(
            "Sequences waiting",
            "queued ones have not begun. preempted ones had begun, gave up their blocks, and will "
            "be computed again.",
            "short",
            (Query(total(r.SEQUENCES_WAITING, "reason"), "{{reason}}"),),
            stacked=True,
        ),
        Graph(
            "Preemptions by server",
            "Sequences in a second that gave up their blocks to be computed again. A line that "
            "stays above zero says that the KV cache is too small for the load.",
            "eps",
            (Query(rate(r.PREEMPTIONS, "instance"), "{{instance}}"),),
        ),
        Graph(
            "Prefix cache",
            "Prompt tokens looked up in a second, and those of them that were found and so not "
            "computed.",
            "suffix: tokens/s",
            (
                Query(rate(r.PREFIX_QUERIES), "looked up"),
                Query(rate(r.PREFIX_HITS), "found"),
            ),
        ),
        BLOCKS_IN_USE,
        THROWN_AWAY,
    ),
)

ENGINE = Dashboard(
    uid="quire-engine",
    title="Quire: Engine",
    description="What steps are made of, how full they are, and what the scheduler does.",
    rows=(_NOW, _STEPS, _SCHEDULER),
)
