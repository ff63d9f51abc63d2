"""A device that runs late, replays what was captured, and notices what a GPU would wait for.

Work handed over lies in a queue until somebody waits for an event behind it, so that whoever reads
a result too early, or changes pinned memory too soon, gets wrong answers. Captured work is a list
of operations with the very tensors and numbers of the capture; a replay does them again, so that a
number that should have been read on the device, or an input that was not copied, shows.

Kernels run on the CPU backend, with a GPU's manners: rows that fill up a batch are skipped and
leave NaN, nothing may be asked of the host, and what the host promised is checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

import kernels
from server.execution.device import Work
from server.execution.live_bytes import LiveBytes

NAN = float("nan")
# What reads a value back on a GPU, or copies from memory that is not pinned: operations, and
# methods that are none.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "repeat_interleave")
READING = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


class NotEnqueued(AssertionError):
    """Something that a GPU cannot do without the host waiting, or out of its order."""


@dataclass
class FakeEvent:
    device: FakeDevice
    position: int

    @property
    def is_done(self) -> bool:
        return self.device.done >= self.position

    def wait(self) -> None:
        self.device.waits += 1
        self.device.catch_up(self.position)

    def seconds_since(self, earlier: FakeEvent) -> float:
        assert self.is_done and earlier.is_done
        return 1e-3 * (self.position - earlier.position)


@dataclass
class Operation:
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def again(self) -> None:
        """Does it again, its results going where they went the first time."""
        new = tree_flatten(self.call(*self.args, **self.kwargs))[0]
        for before, after in zip(tree_flatten(self.out)[0], new, strict=True):
            if isinstance(before, torch.Tensor) and before.data_ptr() != after.data_ptr():
                before.copy_(after)

    def ruin(self) -> None:
        """Fills what it made, views and its own arguments aside, with NaN."""
        given = _storages((self.args, self.kwargs))
        for made in _tensors(self.out):
            if made.is_floating_point() and made.untyped_storage().data_ptr() not in given:
                made.fill_(NAN)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _storages(tree: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(tree)}


def _allocated(result: Any, given: set[int]) -> Any:
    """A kernel's new tensors, made where those can see it that count what is alive."""

    def remade(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.untyped_storage().data_ptr() in given:
            return leaf
        return torch.empty_like(leaf).copy_(leaf)

    if isinstance(result, kernels.SampleOutput):  # no tree of torch's
        return kernels.SampleOutput(remade(result.token_ids), remade(result.non_finite))
    return tree_map(remade, result)


class _Stream(TorchDispatchMode):
    """Sees every tensor operation of work on its way."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.partition(".")[0]
        if not self._device.in_kernel and name in WAITING:
            raise NotEnqueued(f"{name} makes the host wait")
        out = func(*args, **kwargs)
        if self._device.recording is not None and not self._device.in_kernel:
            self._device.recording.append(Operation(func, args, kwargs, out))
        return out


class _Methods(TorchFunctionMode):
    """Sees every method of a tensor that work on its way calls."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if not self._device.in_kernel and name in READING:
            raise NotEnqueued(f"{name} makes the host wait")
        return func(*args, **(kwargs or {}))


class FakeDevice:
    """Implements server.execution.device.Device."""

    description = "a device that runs late"
    overlaps = True
    kernel_cache = None

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")
        self.queue: list[Work] = []
        self.done = 0  # pieces of work
        self.waits = 0  # of the host for the device
        self.most_queued = 0  # pieces of work handed over and not done
        self.captures = 0
        self.replays = 0
        self.running = False
        self.in_kernel = False
        self.recording: list[Operation] | None = None

    def copies(self) -> None:
        return None

    def peak_meter(self) -> LiveBytes:
        return LiveBytes()

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def run(self, work: Work) -> None:
        self.queue.append(work)
        self.most_queued = max(self.most_queued, len(self.queue) - self.done)

    def record(self) -> FakeEvent:
        return FakeEvent(self, len(self.queue))

    def capture(self, work: Work) -> list[Operation]:
        self.captures += 1
        self.run(work)
        self.synchronize()
        self.recording = []
        self._execute(work)
        graph, self.recording = self.recording, None
        with torch.inference_mode():
            for operation in graph:  # a capture runs nothing: what it makes holds no values
                operation.ruin()
        return graph

    def replay(self, graph: list[Operation]) -> None:
        self.replays += 1
        self.run(lambda: self._again(graph))

    def synchronize(self) -> None:
        self.waits += 1
        self.catch_up(len(self.queue))

    def catch_up(self, position: int) -> None:
        while self.done < position:
            work = self.queue[self.done]
            self.queue[self.done] = _done
            self.done += 1
            self._execute(work)

    def _execute(self, work: Work) -> None:
        self.running = True
        try:
            with torch.inference_mode(), _Methods(self), _Stream(self):
                work()
        finally:
            self.running = False

    def _again(self, graph: list[Operation]) -> None:
        for operation in graph:
            operation.again()

    @contextmanager
    def _kernel(self) -> Iterator[None]:
        before, self.in_kernel = self.in_kernel, True
        try:
            yield
        finally:
            self.in_kernel = before

    def kernel(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A kernel that runs ``function``: one operation of a capture, whatever is in it."""

        def launch(*args: Any, **kwargs: Any) -> Any:
            if self.in_kernel:
                return function(*args, **kwargs)
            if not self.running:
                raise NotEnqueued(f"{function.__name__} is started behind the device's back")
            with self._kernel():
                with _disable_current_modes():  # what it holds inside is the CPU backend's matter
                    result = function(*args, **kwargs)
                out = _allocated(result, _storages((args, kwargs)))
            if self.recording is not None:
                self.recording.append(Operation(self._relaunch(function), args, kwargs, out))
            return out

        return launch

    def _relaunch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def again(*args: Any, **kwargs: Any) -> Any:
            with self._kernel(), _disable_current_modes():
                return function(*args, **kwargs)

        return again


def _done() -> None:
    raise AssertionError("work is run twice")


# -- kernels on the CPU backend, as a GPU has them -----------------------------------------------


def _rotary_store_kv(q: Any, k: Any, v: Any, cache: Any, slots: Any, **kwargs: Any) -> None:
    """Tokens of a negative slot are padding: not stored, and theirs to be ruined."""
    live = (slots >= 0).nonzero().view(-1)
    if kwargs.get("positions") is not None:
        kwargs["positions"] = kwargs["positions"][live]
    parts = [heads[live].contiguous() for heads in (q, k, v)]
    _REAL["rotary_store_kv"](*parts, cache, slots[live], **kwargs)
    for heads, stored in ((q, parts[0]), (k, parts[1])):
        heads.fill_(NAN)
        heads[live] = stored


def _prepare_attention(
    *, workspace: Any, like: Any = None, **kwargs: Any
) -> kernels.AttentionMetadata:
    assert workspace is not None
    shape = kwargs.pop("shape")
    return kernels.AttentionMetadata(**kwargs, work=shape)


def _paged_attention(q: Any, cache: Any, metadata: Any, **kwargs: Any) -> torch.Tensor:
    """Rows without a context are skipped, and what nobody wrote is NaN."""
    starts, contexts = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    assert starts[0] == 0
    assert max(lengths) <= metadata.max_query_len
    assert max(contexts) <= metadata.max_seq_len
    live = [b for b, context in enumerate(contexts) if context]
    out = torch.full_like(q, NAN)
    if not live:
        return out
    tokens = torch.cat([torch.arange(starts[b], starts[b + 1]) for b in live])
    ends = torch.tensor([0, *(lengths[b] for b in live)]).cumsum(0).int()
    compact = _REAL["prepare_attention"](
        query_start_loc=ends,
        seq_lens=metadata.seq_lens[live],
        block_tables=metadata.block_tables[live],
        slot_mapping=metadata.slot_mapping[tokens],
        positions=metadata.positions[tokens],
        shape=metadata.work,
    )
    kwargs.pop("workspace")
    out[tokens] = _REAL["paged_attention"](q[tokens], cache, compact, **kwargs)
    return out


OPERATIONS = (
    *("activation", "add_layer_norm", "add_rms_norm", "commit_tokens", "copy_blocks"),
    *("count_tokens", "embedding", "gated_activation", "gather_step", "linear"),
    *("paged_attention", "prepare_attention", "rotary_store_kv", "sample", "token_logprobs"),
    *("write_rows", "xielu"),
)
_REAL = {name: getattr(kernels, name) for name in OPERATIONS}
_GPU = {
    "rotary_store_kv": _rotary_store_kv,
    "prepare_attention": _prepare_attention,
    "paged_attention": _paged_attention,
}


def install(device: FakeDevice, patch: pytest.MonkeyPatch) -> None:
    """Routes every public kernel through the device."""
    for name in OPERATIONS:
        patch.setattr(kernels, name, device.kernel(_GPU.get(name, _REAL[name])))
