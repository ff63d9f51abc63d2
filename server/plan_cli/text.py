"""A plan for a person: plain text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from server.memory.planner.plan import MemoryPlan
from server.plan_cli.bars import bar, decimal, duration, table
from server.plan_cli.make import Plan
from server.plan_cli.split import memory_in_use
from server.units import format_size
from weights.spec import ModelSpec

WIDTH = 100
_LARGE = 1e7


def plan_text(plan: Plan, facts: Mapping[str, Any]) -> str:
    """``facts`` are server.plan_cli.answer's for the same plan."""
    sections = (
        _head(plan, facts),
        _split(facts),
        _census(facts),
        _lengths(facts),
        _grid(facts),
        _work(facts),
        _formulas(facts),
    )
    text = "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)
    # Names of files, and what files say, may hold anything: nothing of it steers the terminal.
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)


def _head(plan: Plan, facts: Mapping[str, Any]) -> Iterator[str]:
    total = format_size(plan.target.total_bytes)
    title = f"{plan.model.name} on {plan.target.name} ({plan.target.title}, {total})"
    yield from textwrap.wrap(f"{title}: {_verdict(plan)}", WIDTH, break_on_hyphens=False)
    yield from _pair("model", _shape(plan.model.spec, facts))
    yield from _pair("from", plan.model.source)
    yield from _pair("held as", _held(facts["request"]))
    if plan.target.device is not None:
        yield from _pair("device", plan.target.device.source)
    if plan.fits:
        yield from _pair("max length", _max_length(facts["capacity"]))
        yield from _pair("KV cache", _kv_cache(plan, facts["capacity"]))
    else:
        yield from _pair("why", facts["refusal"]["message"])
        options = [suggestion["change"] for suggestion in facts["suggestions"]]
        yield from _pair("would fit", " or ".join(options) or "nothing that was tried")
        if plan.start is not None:
            yield from _pair("serve", _starts(plan.start))
    yield from _pair("rule", facts["weights_share"]["says"])
    for note in plan.notes:
        yield from _pair("note", note)


def _verdict(plan: Plan) -> str:
    args, length = plan.args, plan.memory.max_model_len
    seqs = plan.config.scheduler.max_num_seqs
    if not plan.fits:
        if plan.start is None:
            return "does not fit"
        return f"does not fit: {seqs} sequences of {length} tokens at once"
    if args.is_whole_load:
        return f"fits, {seqs} sequences of {length} tokens at once"
    verdict, most = "fits", plan.memory.model_max_len
    if args.max_model_len is None and length < most:
        verdict = f"fits, with at most {length} of {most} tokens"
    held = int(plan.memory.concurrent_sequences)
    if held < seqs:
        verdict += f"; of that length {held} of {seqs} sequences at once"
    return verdict


def _starts(start: MemoryPlan) -> str:
    return (
        f"quire serve starts with these options: it holds {int(start.concurrent_sequences)} such "
        "sequences at once; more of them wait, and some are interrupted and computed again"
    )


def _max_length(capacity: Mapping[str, Any]) -> str:
    return (
        f"{capacity['max_model_len']} tokens planned; the longest that fits is "
        f"{capacity['largest_max_model_len']}, the model takes {capacity['model_max_len']}"
    )


def _kv_cache(plan: Plan, capacity: Mapping[str, Any]) -> str:
    tokens, each = f"{capacity['kv_tokens']:,} tokens", format_size(capacity["kv_bytes_per_token"])
    if any(plan.model.spec.windows):
        # Behind a window a token takes no more: tokens x bytes are not the cache's.
        tokens += f" in sequences of {capacity['max_model_len']}"
        each += " each within every window, less behind it"
    else:
        each += " each"
    return f"{tokens}, {each}; set by {capacity['set_by']}"


def _shape(spec: ModelSpec, facts: Mapping[str, Any]) -> str:
    heads = spec.attention
    text = (
        f"{spec.family}, {spec.num_layers} layers, hidden {spec.hidden_size}, "
        f"{spec.heads_in_words}, vocabulary "
        f"{spec.vocab_size}, {facts['everything']['parameters']:,} parameters"
    )
    if heads.latent is not None:
        text += f", latent rows of {heads.cached_rows[1]}"
    if spec.experts is not None:
        passed = decimal(facts["flops"]["parameters_passed"])
        text += f", {spec.experts.chosen} of {spec.experts.count} experts a token ({passed} passed)"
    return f"{text}, {facts['everything']['convention']}"


def _held(request: Mapping[str, Any]) -> str:
    text = f"{request['format']}"
    if request["quantization"]:
        text += f", matrices in {request['quantization']}"
    text += f", KV cache in {request['kv_format']}, blocks of {request['block_size']}"
    text += f"; {request['max_num_seqs']} sequences, {request['max_num_batched_tokens']} tokens"
    text += " a step"
    ranks = request["tensor_parallel_size"]
    return text + (f"; each of {ranks} ranks" if ranks > 1 else "")


def _split(facts: Mapping[str, Any]) -> Iterator[str]:
    total = facts["total_bytes"]
    if not facts["fits"]:
        length, least = facts["capacity"]["max_model_len"], facts["request"]["sequences_at_once"]
        load = "one sequence" if least == 1 else f"{least} sequences"
        yield f"what it would take, with a KV cache for {load} of {length} tokens"
    used = memory_in_use(facts["split"])
    in_use = sum(used.values())
    rows, bars = [("memory", "bytes", "size", "of total", "of use")], [""]
    for kind, nbytes in facts["split"].items():
        guess = " ~" if kind in facts["estimated"] else ""
        of_use = _percent(nbytes, in_use) if kind in used else ""
        rows.append((kind + guess, *_sizes(nbytes, total), of_use))
        bars.append(bar(nbytes / total))
    rows.append(("in use", *_sizes(in_use, total), _percent(in_use, in_use)))
    rows.append(("total", *_sizes(total, total), ""))
    bars += ["", ""]
    for line, drawn in zip(table(rows), bars, strict=True):
        yield f"{line}  {drawn}".rstrip()
    if facts["estimated"]:
        yield "~ estimated: what is kept for it, until a server has measured it"


def _sizes(nbytes: int, total: int) -> tuple[str, str, str]:
    return f"{nbytes:,}", format_size(nbytes), _percent(nbytes, total)


def _percent(nbytes: int, whole: int) -> str:
    return f"{100 * nbytes / whole:.1f} %"


def _census(facts: Mapping[str, Any]) -> Iterator[str]:
    whole = ", whole model" if facts["request"]["tensor_parallel_size"] > 1 else ""
    rows = [(f"census{whole}", "matrices", "parameters", "bytes", "size")]
    for name, line in facts["census"].items():
        if line["matrices"]:
            rows.append(_census_row(name, line))
    rows.append(_census_row("total of matrices", facts["total"]))
    for name, line in facts["census"].items():
        if not line["matrices"]:
            rows.append(_census_row(name, line))
    yield from table(rows)


def _census_row(name: str, line: Mapping[str, int]) -> tuple[str, str, str, str, str]:
    matrices = f"{line['matrices']:,}" if line["matrices"] else ""
    return (
        name,
        matrices,
        f"{line['parameters']:,}",
        f"{line['bytes']:,}",
        format_size(line["bytes"]),
    )


def _lengths(facts: Mapping[str, Any]) -> Iterator[str]:
    lines = facts["capacity"]["sequences"]
    if not lines:
        return
    seqs = facts["capacity"]["max_num_seqs"]
    rows = [("sequences of", "held at once", "computed at once", "bytes of one")]
    for line in lines:
        held = line["sequences"]
        rows.append(
            (
                f"{line['length']} tokens",
                f"{held:,}",
                f"{min(held, seqs):,}",
                format_size(line["bytes_each"]),
            )
        )
    yield from table(rows)


def _grid(facts: Mapping[str, Any]) -> Iterator[str]:
    cells = facts["what_if"]
    ranks = sorted({cell["tensor_parallel_size"] for cell in cells})
    rows = [("what if: weights", "KV", *(f"tp {n}" for n in ranks))]
    by_row: dict[tuple[str, str], dict[int, str]] = {}
    for cell in cells:
        row = by_row.setdefault((cell["weights"], cell["kv"]), {})
        row[cell["tensor_parallel_size"]] = _cell(cell)
    rows += [(weights, kv, *(row[n] for n in ranks)) for (weights, kv), row in by_row.items()]
    yield from table(rows, left=2)
    yield (
        f"sequences of {cells[0]['length']} tokens held at once; no: does not fit; -: cannot be "
        "shared so"
    )


def _cell(cell: Mapping[str, Any]) -> str:
    if not cell["possible"]:
        return "-"
    return f"{cell['sequences']:,}" if cell["fits"] else "no"


def _work(facts: Mapping[str, Any]) -> Iterator[str]:
    flops = facts["flops"]
    yield (
        f"FLOPs a token: {decimal(flops['decode_per_token'])} to decode at {flops['length']} "
        f"tokens, {decimal(flops['prefill_per_token'])} on average in a prompt of that length"
    )
    yield (
        f"  of these: layers {decimal(flops['matrices_per_token'])}, logits "
        f"{decimal(flops['logits_per_token'])} (of a prompt's last token alone), attention"
        f" {decimal(flops['attention_per_token'])}"
    )
    rows = [("at least", "memory read", "takes", "FLOPs", "take", "bound by", "tokens/s")]
    for step in facts["roofline"]:
        rows.append(
            (
                step["step"],
                format_size(step["read_bytes"]),
                duration(step["memory_seconds"]),
                decimal(step["flops"]),
                duration(step["compute_seconds"]),
                step["bound"] or "-",
                # By one side alone a rate would be a promise that the other may not keep.
                _rate(step["tokens"] / step["seconds"]) if step["bound"] else "-",
            )
        )
    yield from table(rows)
    ranks = facts["request"]["tensor_parallel_size"]
    if ranks > 1:
        yield f"FLOPs are of all {ranks} ranks together, memory read is one's"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second < _LARGE else decimal(per_second)


def _formulas(facts: Mapping[str, Any]) -> Iterator[str]:
    if "formulas" not in facts:
        return
    yield "how each line comes about"
    for name, formula in facts["formulas"].items():
        nbytes = facts["split"].get(name)
        text = formula if nbytes is None else f"{nbytes:,} B = {formula}"
        yield from _pair(name, text, indent=22)


def _pair(name: str, text: str, indent: int = 13) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"  {name:<{indent - 2}}",
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
