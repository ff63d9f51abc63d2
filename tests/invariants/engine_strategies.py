"""What hypothesis draws: how large an engine is, and what a client asks of it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from((1, 1, 1, 2)))
    return {
        "block_size": draw(st.sampled_from((1, 2, 4))),
        "num_blocks": draw(st.integers(2, 12)),
        "num_groups": groups,
        "vocab": draw(st.sampled_from((2, 3))),
        "context": draw(st.sampled_from((6, 12, 24))),
        "max_seqs": draw(st.integers(1, 4)),
        "budget": draw(st.sampled_from((1, 2, 3, 5, 8, 64))),
        "logit_rows": draw(st.sampled_from((1, 2, 4, 64))),
        "max_preemptions": draw(st.sampled_from((8, 8, 2, 1, 0))),
        "caching": draw(st.sampled_from((True, True, True, False))),
        "digest": draw(st.sampled_from(("sha256", "sha256", "constant", "1 byte"))),
        "overlaps": draw(st.booleans()),
        "queue": draw(st.sampled_from((3, 8, 30))),
    }


@st.composite
def asks(draw: st.DrawFn) -> dict[str, Any]:
    """What a client may want, before it is made to fit the example's vocabulary."""
    return {
        "kind": draw(st.sampled_from(("new", "prefix", "repeat", "repeat"))),
        "tokens": draw(st.lists(st.integers(0, 2), min_size=1, max_size=9)),
        "pick": draw(st.integers(0, 50)),
        "n": draw(st.sampled_from((1, 1, 1, 2, 3))),
        "max_tokens": draw(st.sampled_from((0, 1, 2, 4, 7, 12))),
        "min_tokens": draw(st.sampled_from((0, 0, 1, 3))),
        "ends": draw(st.sampled_from(("eos", "ignore", "stop", "ignore"))),
        "scored": draw(st.sampled_from((None, None, None, 0, 2))),
        "logprobs": draw(st.sampled_from((None, 1))),
        "scope": draw(
            st.sampled_from((("", "", 0),) * 5 + (("s", "", 0), ("", "a", 1), ("", "a", 2)))
        ),
        "seed": draw(st.integers(0, 1)),
        "priority": draw(st.sampled_from((0, 0, 0, 1, -1))),
        "fits": draw(st.sampled_from((True,) * 7 + (False,))),
        "poison": draw(st.sampled_from((False,) * 11 + (True,))),
    }
