"""Freed memory goes back to the kernel: in a thread, when much was freed, and not all the time."""

from __future__ import annotations

import asyncio
import threading

from server.memory.accounting.malloc import TRIM_BYTES, Trimmer, fix_mmap_threshold, trim_malloc


def test_glibc_takes_both() -> None:
    assert fix_mmap_threshold()
    trim_malloc()


async def test_it_is_trimmed_off_the_loop_once_for_much_and_not_for_little() -> None:
    trimmed: asyncio.Queue[bool] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def trim() -> None:
        off = threading.current_thread() is not threading.main_thread()
        loop.call_soon_threadsafe(trimmed.put_nowait, off)

    trimmer = Trimmer(trim, every_s=0)
    trimmer.freed(TRIM_BYTES - 1)
    await asyncio.sleep(0)
    assert trimmed.empty()
    async with asyncio.timeout(10):
        for _ in range(3):
            trimmer.freed(TRIM_BYTES)
        assert await trimmed.get()
        assert trimmed.empty()
        trimmer.freed(TRIM_BYTES)  # also while one is under way, or after it
        assert await trimmed.get()
