"""Programs in quick succession, on any number of threads and pools, give what one thread gives."""

from __future__ import annotations

import ctypes
import gc
import random
import threading

import pytest
import torch
from torch import Tensor

from kernels.cpu.native import structs
from kernels.cpu.native.elementwise import norm_call
from kernels.cpu.native.library import NativeUnavailable, Pool, level
from kernels.cpu.native.linear import linear_call, pack_linear
from kernels.cpu.native.program import Program, address, of_tokens, runtime
from kernels.footprint.native_linear import product_scratch_bytes
from tests.kernels.native.native_steps import threads

MOST_THREADS, ROWS, WIDTH = 4, 5, 48
PROGRAMS = 500  # of each number of threads


class Chain:
    """A product, a norm and a sum, each of what the one before made, some times over."""

    def __init__(self, layers: int, format: str) -> None:
        generator = torch.Generator().manual_seed(layers)
        self.start = torch.randn(ROWS, WIDTH, generator=generator)
        self.x, self.y = self.start.clone(), torch.empty(ROWS, WIDTH)
        nbytes = product_scratch_bytes(ROWS, WIDTH, format, MOST_THREADS)
        self.scratch = torch.empty(nbytes, dtype=torch.uint8)
        self.weights = [
            pack_linear(torch.randn(WIDTH, WIDTH, generator=generator), format)
            for _ in range(layers)
        ]
        x, y = address(self.x), address(self.y)
        calls: list[ctypes.Structure] = []
        for weight in self.weights:
            calls.append(
                linear_call(weight, self.x, self.y, self.scratch, bias=weight.bias, most=ROWS)
            )
            calls.append(norm_call(self.y, self.y, epsilon=1e-5, centred=True))
            calls.append(structs.Sum(x, y, x, WIDTH, 0.5, 0.0))
        self.program = Program(calls)

    def run(self, rows: int, count: int | None = None) -> Tensor:
        """What the first ``count`` calls make of so many rows."""
        self.x.copy_(self.start)
        self.y.zero_()
        self.program.run(of_tokens(rows), count)
        return torch.cat((self.x, self.y))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_thousands_of_short_programs(count: int, native_level: str) -> None:
    """Of any length, down to none; the next one begins while threads still leave the last."""
    draw = random.Random(count)
    chains = [Chain(1, "f32"), Chain(2, "int8"), Chain(3, "bf16")]
    cases = [(c, rows, n) for c in range(3) for rows in (1, 2, ROWS) for n in range(3 * c + 4)]
    with threads(1):
        right = {case: chains[case[0]].run(*case[1:]) for case in cases}
    with threads(count):
        for _ in range(PROGRAMS):
            case = draw.choice(cases)
            assert torch.equal(chains[case[0]].run(*case[1:]), right[case]), case


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_program_that_runs_several_times_over(count: int, native_level: str) -> None:
    """Each time on what the time before has made, with the units of work from the start again."""
    chain = Chain(2, "f32")
    with threads(count):
        for passes in (0, 1, 2, 3, 17):
            chain.run(ROWS, 0)
            for _ in range(passes):
                chain.program.run(of_tokens(ROWS))
            right = torch.cat((chain.x, chain.y))
            chain.run(ROWS, 0)
            chain.program.run(of_tokens(ROWS), passes=passes)
            assert torch.equal(torch.cat((chain.x, chain.y)), right), passes


def test_programs_right_behind_each_other(native_level: str) -> None:
    """With nothing of Python's between them but the call itself."""
    chain = Chain(2, "f32")
    with threads(1):
        right = chain.run(ROWS)
    step, calls = of_tokens(ROWS), chain.program
    with threads(3):
        how = runtime()
        for _ in range(3):
            for repeat in range(400):
                how.pool.run(how.level, calls._calls, repeat % 2, step)
            chain.x.copy_(chain.start)
            how.pool.run(how.level, calls._calls, len(calls), step)
            assert torch.equal(torch.cat((chain.x, chain.y)), right)


def test_two_pools_at_the_same_time(native_level: str) -> None:
    """Each with a thread of Python that runs programs on it."""
    chains, how = [Chain(2, "f32"), Chain(2, "f32")], level(native_level)
    pools, results = [Pool(2), Pool(2)], [torch.empty(0), torch.empty(0)]
    with threads(1):
        right = chains[0].run(ROWS)

    def work(number: int) -> None:
        chain, step = chains[number], of_tokens(ROWS)
        for _ in range(500):
            chain.x.copy_(chain.start)
            pools[number].run(how, chain.program._calls, len(chain.program), step)
            results[number] = torch.cat((chain.x, chain.y))
            if not torch.equal(results[number], right):
                return

    both = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert torch.equal(results[0], right)
    assert torch.equal(results[1], right)


def threads_of_this_process() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads"))


def test_a_pool_that_is_freed_takes_its_threads_with_it() -> None:
    try:
        how = level("portable")
    except NativeUnavailable as error:
        pytest.skip(f"no native kernels: {error}")
    chain, before = Chain(1, "f32"), threads_of_this_process()
    for run in (False, True):
        pools = [Pool(3) for _ in range(4)]
        assert threads_of_this_process() == before + 8
        for pool in pools:
            if run:
                pool.run(how, chain.program._calls, len(chain.program), of_tokens(ROWS))
        del pool, pools
        gc.collect()
        assert threads_of_this_process() == before


def test_a_pool_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="threads is 0; there must be at least 1"):
        Pool(0)
    with pytest.raises(ValueError, match="1 cpus are given for 2 threads"):
        Pool(2, [0])


def test_threads_may_be_pinned(native_level: str) -> None:
    chain = Chain(1, "f32")
    with threads(1):
        right = chain.run(ROWS)
    chain.x.copy_(chain.start)
    pool = Pool(2, [0, 0])
    pool.run(level(native_level), chain.program._calls, len(chain.program), of_tokens(ROWS))
    assert torch.equal(torch.cat((chain.x, chain.y)), right)
