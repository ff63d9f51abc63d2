"""What the system allows this process."""

from __future__ import annotations

import resource


def raise_file_limit() -> int:
    """As many open files, and so connections, as may be had without more rights; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
