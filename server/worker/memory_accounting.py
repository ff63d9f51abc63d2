"""The engine's memory accounting: its device is opened and read before the model is loaded, and
joined to what the engine holds afterwards.

    open_device --> libraries set up, base reading --> the model is loaded --> accounting_sources
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from server.engine.gauges import EngineGauges
from server.execution.build import BuiltRunner
from server.execution.device import OpenedDevice
from server.ipc.engine_info import GAUGE_NAMES, EngineSettings
from server.ipc.gauges import GaugeBlock
from server.memory.accounting.accountant import AccountingSources, KVUse
from server.memory.accounting.process import process_resident
from server.memory.accounting.reading import HostUse
from server.memory.backends.registry import backend_named
from server.memory.kinds import MemoryKind


def open_device(settings: EngineSettings) -> OpenedDevice:
    """Makes the libraries set themselves up, then takes the base reading.

    Raises:
        StartupError: the device that the settings want is not there.
        CheckpointError: the folder is refused.
    """
    backend = backend_named(settings.config.model.backend)
    opened: OpenedDevice = backend.load(backend.open_device)(
        settings.config, Path(settings.model_dir)
    )
    return opened


def accounting_sources(
    opened: OpenedDevice, built: BuiltRunner, gauges: Callable[[], EngineGauges]
) -> AccountingSources:
    """What the accountant looks at. ``gauges`` are the engine core's at the time."""

    def held_bytes() -> Mapping[MemoryKind, int]:
        return built.held.by_kind()

    def host() -> HostUse:
        return HostUse(
            resident=process_resident(),
            pinned=built.runner.pinned_bytes,
            shared=GaugeBlock.size_bytes(len(GAUGE_NAMES)),
        )

    return AccountingSources(
        device=opened.memory,
        held_bytes=held_bytes,
        kv_use=lambda: kv_use(gauges()),
        kv_page_bytes=built.kv.page_bytes,
        kv_token_bytes=built.kv.groups[0].bytes_per_token,
        peak_activation_bytes=lambda: built.runner.peak.peak_bytes,
        host=host,
    )


def kv_use(gauges: EngineGauges) -> KVUse:
    """A block that waits for a step in flight is as good as active."""
    return KVUse(
        active_blocks=gauges.blocks_active + gauges.blocks_reserved,
        cached_blocks=gauges.blocks_cached,
        reserved_tokens=gauges.kv_tokens_reserved,
        filled_tokens=gauges.kv_tokens_filled,
    )
