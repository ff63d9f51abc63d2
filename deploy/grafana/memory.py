"""The dashboard Memory: where every byte is, and how far that is from the plan."""

from __future__ import annotations

from deploy.grafana.panels import Bars, Dashboard, Graph, Query, Row, Stat, Table
from deploy.grafana.queries import highest, total
from deploy.grafana.shared import BLOCKS_IN_USE, KV_IN_USE
from server.memory.kinds import MemoryKind
from server.metrics import registry as r

_NOT_OURS = (MemoryKind.FREE, MemoryKind.OTHER_PROCESSES)
_OWN = "~" + "|".join(kind for kind in MemoryKind if kind not in _NOT_OURS)

_NOW = Row(
    "Now",
    (
        Stat(
            "Device memory",
            "All memory of the devices: a GPU's, or on a CPU what this machine or its container "
            "allows.",
            "bytes",
            (Query(total(r.MEMORY_TOTAL)),),
        ),
        Stat(
            "Held by the server",
            "All that the server holds on the devices, whatever for: the total less what is free "
            "and what other processes use.",
            "bytes",
            (
                Query(
                    total(
                        r.MEMORY,
                        kind=_OWN,
                    )
                ),
            ),
        ),
        Stat(
            "Free",
            "Unused memory. On a GPU the KV cache has taken what it can, so little is left.",
            "bytes",
            (Query(total(r.MEMORY, kind="free")),),
        ),
        KV_IN_USE,
        Stat(
            "Unaccounted",
            "What no kind accounts for, of the server with most of it. It can be slightly "
            "negative. When it grows, something allocates behind the accountant's back.",
            "bytes",
            (Query(highest(r.MEMORY, kind="unaccounted")),),
            thresholds=((64 * 2**20, "yellow"), (512 * 2**20, "red")),
        ),
        Stat(
            "Other processes",
            "Used on the devices by other processes. On a CPU the API process is among them.",
            "bytes",
            (Query(total(r.MEMORY, kind="other_processes")),),
        ),
    ),
)

_SPLIT = Row(
    "Where it is",
    (
        Graph(
            "All memory by kind",
            "Every byte of the devices, by what it is for. The areas add up to the dashed line, "
            "the devices' total: where they do not, a reading is missing. Servers that share one "
            "device each count all of it, so choose one instance.",
            "bytes",
            (
                Query(total(r.MEMORY, "kind"), "{{kind}}"),
                Query(total(r.MEMORY_TOTAL), "total"),
            ),
            width=16,
            height=11,
            stacked=True,
            lines=("total",),
        ),
        Table(
            "Planned beside measured",
            "What the plan reserved before the model was loaded, beside what is held now and the "
            "most that ever was. Peak of plan above 100 % means that the plan was too small. Kinds "
            "that no plan can know have an empty cell. estimated is 1 where the driver does not "
            "say what belongs to whom.",
            "bytes",
            (
                Query(total(r.MEMORY, "kind"), "now"),
                Query(total(r.MEMORY_PEAK, "kind"), "peak"),
                Query(total(r.MEMORY_PLANNED, "kind"), "planned"),
                Query(
                    f"{total(r.MEMORY_PEAK, 'kind')} / ({total(r.MEMORY_PLANNED, 'kind')} > 0)",
                    "peak of plan",
                    unit="percentunit",
                ),
                Query(highest(r.MEMORY_ESTIMATED, "kind"), "estimated", unit="none"),
            ),
            width=8,
            height=11,
            key="kind",
        ),
    ),
)

_KV = Row(
    "KV cache",
    (
        Graph(
            "Token slots: reserved and filled",
            "Slots of all blocks (capacity), of blocks that requests hold (reserved), and those "
            "that hold a token (filled). The gap between reserved and filled is the waste of "
            "half-full blocks.",
            "short",
            (Query(total(r.KV_TOKENS, "state"), "{{state}}"),),
        ),
        Graph(
            "Filled of reserved",
            "How much of what requests hold has a token in it. Low with short requests and large "
            "blocks; a smaller --block-size raises it. No line while nothing is reserved.",
            "percentunit",
            (
                Query(
                    f"{total(r.KV_TOKENS, state='filled')}"
                    f" / {total(r.KV_TOKENS, state='reserved')}",
                    "filled of reserved",
                ),
            ),
            ratio=True,
        ),
        BLOCKS_IN_USE,
        Graph(
            "Blocks by state",
            "Live blocks belong to requests. Cached ones keep a prefix that the next request may "
            "share, and are given up when blocks run out. Free ones hold nothing.",
            "short",
            (Query(total(r.KV_BLOCKS, "state"), "{{state}}"),),
            stacked=True,
        ),
        Graph(
            "Bytes by use",
            "The same pool in bytes: active holds tokens of requests, tail_waste is the empty end "
            "of their last blocks, cached are prefixes to share, free is the rest.",
            "bytes",
            (Query(total(r.KV_BYTES, "use"), "{{use}}"),),
            stacked=True,
        ),
        Graph(
            "Held for each running request",
            "Bytes of the KV cache in blocks that requests hold, for each request that runs. No "
            "line while none runs.",
            "bytes",
            (
                Query(
                    f"{total(r.KV_BYTES, use='~active|tail_waste')} "
                    f"/ ({total(r.REQUESTS_RUNNING)} > 0)",
                    "bytes for each request",
                ),
            ),
        ),
    ),
)

_PARTS = Row(
    "Parts",
    (
        Bars(
            "Weights by component",
            "Parameters as they are held, by what they are for and in which number format. Tied "
            "tables are counted once.",
            "bytes",
            (
                Query(
                    f"sort_desc({total(r.WEIGHTS, 'component', 'dtype')})",
                    "{{component}} ({{dtype}})",
                ),
            ),
            height=9,
        ),
        Graph(
            "Largest step so far, and its plan",
            "Activations: the most that intermediate tensors of one step have taken, and what was "
            "reserved for the largest step that can come.",
            "bytes",
            (
                Query(total(r.MEMORY_PEAK, kind="activations"), "peak"),
                Query(total(r.MEMORY_PLANNED, kind="activations"), "planned"),
            ),
            height=9,
            lines=("planned",),
        ),
        Graph(
            "Unaccounted by server",
            "What no kind accounts for, for each server and device, with its sign. A line that "
            "rises and stays up is a leak, or a library that keeps unplanned memory.",
            "bytes",
            (
                Query(
                    highest(r.MEMORY, "instance", "device", kind="unaccounted"),
                    "{{instance}} {{device}}",
                ),
            ),
            height=9,
        ),
        Graph(
            "Unaccounted, by where it lies",
            "tensors: the allocator gave it to tensors that are in no list of ours; measured on a "
            "GPU. outside: taken without the allocator.",
            "bytes",
            (
                Query(
                    total(r.MEMORY_PARTS, "part", kind="unaccounted"),
                    "{{part}}",
                ),
            ),
            height=9,
        ),
        Graph(
            "Allocator's slack, by reason",
            "Reserved from the device and in no tensor. free: can be given out again. pending: "
            "freed, and waiting for another stream. rounding: sizes are rounded up.",
            "bytes",
            (Query(total(r.MEMORY_PARTS, "part", kind="allocator_slack"), "{{part}}"),),
            height=9,
            stacked=True,
        ),
        Graph(
            "Runtime and libraries",
            "base: what stood before the model was loaded, on a GPU the context. code: loaded code "
            "and kernels. libraries: what cuBLAS and its like took for themselves.",
            "bytes",
            (
                Query(
                    total(r.MEMORY_PARTS, "kind", "part", kind="~runtime|workspace"),
                    "{{kind}}: {{part}}",
                ),
            ),
            height=9,
            stacked=True,
        ),
    ),
)

_AROUND = Row(
    "Around it",
    (
        Graph(
            "Host memory",
            "Memory of the host: what the processes have resident, and of that what is pinned for "
            "a device or shared, where that was measured. A process that grows hour after hour "
            "leaks.",
            "bytes",
            (Query(total(r.HOST_MEMORY, "what"), "{{what}}"),),
        ),
        Graph(
            "API process, for its clients",
            "What bodies that arrive, requests made of them, events that no client has read and "
            "work in progress may take, beside the most that they may take together. At that bound "
            "requests get 503.",
            "bytes",
            (
                Query(total(r.API_MEMORY, "use"), "{{use}}"),
                Query(total(r.API_MEMORY_BUDGET), "budget"),
            ),
        ),
        Graph(
            "Allocator",
            "What the allocator has taken from the device (reserved), gives out (in_use), and "
            "could still give in one piece (largest_free, where it can tell). Much reserved and "
            "little in use, in small pieces, is fragmentation.",
            "bytes",
            (Query(total(r.ALLOCATOR, "state"), "{{state}}"),),
        ),
        Graph(
            "Other processes, and free",
            "What others use on the devices, and what is left. When others grow, the server's plan "
            "may no longer fit when it starts the next time.",
            "bytes",
            (Query(total(r.MEMORY, "kind", kind="~other_processes|free"), "{{kind}}"),),
        ),
    ),
)

MEMORY = Dashboard(
    uid="quire-memory",
    title="Quire: Memory",
    description="What every byte is for, beside what was planned.",
    rows=(_NOW, _SPLIT, _KV, _PARTS, _AROUND),
)
