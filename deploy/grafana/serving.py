"""The dashboard Serving: what clients see."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Graph, Query, Row, Stat
from deploy.grafana.queries import highest, lowest, rate, select, total
from deploy.grafana.shared import THROWN_AWAY, distribution
from server.metrics import registry as r

_TTFT_P95 = "instance:quire_time_to_first_token_seconds:p95_rate5m"
_ITL_P95 = "instance:quire_inter_token_latency_seconds:p95_rate5m"
_ERRORS = "instance:quire_request_errors:ratio_rate5m"
_OVERLOADED = "instance:quire_requests_overloaded:ratio_rate5m"

_NOW = Row(
    "Now",
    (
        Stat(
            "Takes requests",
            "Whether every chosen server's engine is ready. No: at least one loads, is being "
            "started again, or has given up.",
            "none",
            (Query(lowest(r.ENGINE_UP)),),
            width=3,
            texts=(("0", "no", "red"), ("1", "yes", "green")),
        ),
        Stat(
            "Requests",
            "Requests that ended in a second, however they ended.",
            "reqps",
            (Query(rate(r.REQUESTS)),),
            width=3,
        ),
        Stat(
            "Generated tokens",
            "Tokens generated in a second, for all requests together.",
            "suffix: tokens/s",
            (Query(rate(r.GENERATION_TOKENS)),),
        ),
        Stat(
            "First token, 95 of 100",
            "Of 100 requests of the last five minutes, 95 got their first token within this time; "
            "of several servers the slowest. Recorded by the rules file.",
            "s",
            (Query(f"max ({select(_TTFT_P95)})"),),
        ),
        Stat(
            "Between tokens, 95 of 100",
            "Of 100 gaps between two tokens of the last five minutes, 95 were at most this long; "
            "of several servers the slowest. Recorded by the rules file.",
            "s",
            (Query(f"max ({select(_ITL_P95)})"),),
        ),
        Stat(
            "Oldest in the queue",
            "How long the oldest queued request has waited for its first step. 0: the queue is "
            "empty.",
            "s",
            (Query(highest(r.QUEUE_AGE)),),
            width=3,
            thresholds=((5, "yellow"), (15, "red")),
        ),
        Stat(
            "Errors",
            "Share of the requests of the last five minutes that failed by the server's own fault "
            "(5xx); of several servers the worst. Recorded by the rules file.",
            "percentunit",
            (Query(f"max ({select(_ERRORS)})"),),
            width=3,
            thresholds=((0.005, "yellow"), (0.02, "red")),
        ),
    ),
)

_TRAFFIC = Row(
    "Traffic",
    (
        Graph(
            "Requests by how they ended",
            "stop and length are answers. abort: the client went away. invalid: refused as sent "
            "(4xx). overloaded: queue full or waited too long (429, 503). error: our own fault "
            "(5xx).",
            "reqps",
            (Query(rate(r.REQUESTS, "outcome"), "{{outcome}}"),),
            stacked=True,
        ),
        Graph(
            "Requests running and waiting",
            "Requests that compute now, and those that have been accepted and wait for a place.",
            "short",
            (
                Query(total(r.REQUESTS_RUNNING), "running"),
                Query(total(r.REQUESTS_WAITING), "waiting"),
            ),
        ),
        Graph(
            "Tokens",
            "Tokens of prompts and generated tokens in a second. Prompts are counted when their "
            "request has ended.",
            "suffix: tokens/s",
            (
                Query(rate(r.PROMPT_TOKENS), "prompt"),
                Query(rate(r.GENERATION_TOKENS), "generated"),
            ),
        ),
    ),
)

_LATENCY = Row(
    "How long it takes",
    (
        distribution(
            "Time to first token",
            "From a request's arrival to its first token: waiting in the queue, then computing the "
            "prompt.",
            r.TTFT_SECONDS,
        ),
        distribution(
            "Between tokens",
            "From one token of an answer to the next: what a reader of a stream feels.",
            r.INTER_TOKEN_SECONDS,
        ),
        distribution(
            "Wait in the queue",
            "From a request's arrival to its first step. It rises when the KV cache or the rows "
            "are all taken.",
            r.QUEUE_SECONDS,
        ),
        distribution(
            "Whole requests",
            "From a request's arrival to the last byte of its answer. It grows with the length of "
            "the answers.",
            r.REQUEST_SECONDS,
        ),
        distribution(
            "Time for each token, by request",
            "A request's mean time for a token after its first: long pauses of a few do not show "
            "here, those of many do.",
            r.TPOT_SECONDS,
        ),
        Graph(
            "Oldest in the queue by server",
            "How long the oldest request of each server has waited. Past "
            "--queue-timeout (60 seconds unless set) it gets a 503.",
            "s",
            (Query(highest(r.QUEUE_AGE, "instance"), "{{instance}}"),),
            thresholds=((15, "red"),),
        ),
    ),
)

_SHAPE = Row(
    "What is asked for",
    (
        distribution(
            "Length of prompts",
            "Tokens in the prompt of a request. The buckets are powers of two, so this is rough.",
            r.PROMPT_LENGTH,
            "short",
        ),
        distribution(
            "Length of answers",
            "Tokens generated for a request, over all of its choices.",
            r.GENERATION_LENGTH,
            "short",
        ),
        Graph(
            "Prompt tokens that wait",
            "Tokens of the prompts in the queue: the work that is already accepted.",
            "short",
            (Query(total(r.WAITING_TOKENS), "waiting"),),
        ),
    ),
)

_REFUSED = Row(
    "What goes wrong",
    (
        Graph(
            "HTTP answers by status",
            "Every answer of the server, also of routes that generate nothing.",
            "reqps",
            (Query(rate(r.HTTP_REQUESTS, "status"), "{{status}}"),),
            stacked=True,
        ),
        Graph(
            "Share of errors and of refusals",
            "Of the requests of the last five minutes: failed by our fault, and turned away "
            "because there was too much to do. No line without requests. Recorded by the rules "
            "file.",
            "percentunit",
            (
                Query(f"max by (instance) ({select(_ERRORS)})", "errors {{instance}}"),
                Query(f"max by (instance) ({select(_OVERLOADED)})", "overloaded {{instance}}"),
            ),
            ratio=True,
        ),
        THROWN_AWAY,
    ),
)

SERVING = Dashboard(
    uid="quire-serving",
    title="Quire: Serving",
    description="What clients see: how much, how fast, and what goes wrong.",
    rows=(_NOW, _TRAFFIC, _LATENCY, _SHAPE, _REFUSED),
)
