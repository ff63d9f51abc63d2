"""What NVML answers, through a stand-in for its library: the device, its figures, silence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from server.memory.accounting.nvml import DeviceUse, Nvml, open_nvml

UUID, BUS = "00010203-0405-0607-0809-0a0b0c0d0e0f", "0000:19:00.0"
NAME = "a_stand_in_for_pynvml"


class Library(ModuleType):
    """One device, known by the names in ``known``."""

    class NVMLError(Exception):
        pass

    def __init__(self, *known: str) -> None:
        super().__init__(NAME)
        self.known = known
        self.nvmlMemory_v2 = 33554472
        self.old = self.lost = self.hides = False
        self.compute = [(11, 500), (12, 700)]
        self.graphics = [(12, 800), (13, 5)]

    def nvmlInit(self) -> None:
        if not self.known:
            raise self.NVMLError

    def _handle(self, name: str) -> str:
        if name not in self.known:
            raise self.NVMLError
        return name

    nvmlDeviceGetHandleByUUID = nvmlDeviceGetHandleByPciBusId = _handle

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> SimpleNamespace:
        if self.lost or (self.old and version is not None):
            raise self.NVMLError
        if version is None:
            return SimpleNamespace(total=1000, free=600, used=400)
        return SimpleNamespace(total=1000, free=600, used=370, reserved=30)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=None if self.hides else used)
            for pid, used in self.compute
        ]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.graphics]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    made = Library(f"GPU-{UUID}")
    monkeypatch.setitem(sys.modules, NAME, made)
    yield made


def opened() -> Nvml:
    nvml = open_nvml(UUID, BUS, NAME)
    assert nvml is not None
    return nvml


def test_memory_and_processes_each_once(library: Library) -> None:
    assert opened().read() == DeviceUse(1000, 600, 30, {11: 500, 12: 800, 13: 5})


@pytest.mark.parametrize("name", [f"GPU-{UUID}", f"MIG-{UUID}", BUS])
def test_a_device_is_found_by_its_identity_as_a_whole_or_a_part_else_by_its_bus(
    library: Library, name: str
) -> None:
    library.known = (name, "GPU-another")
    assert opened()._handle == name


def test_an_old_driver_does_not_say_what_it_keeps(library: Library) -> None:
    library.old = True
    use = opened().read()
    assert use is not None
    assert (use.total, use.free, use.driver) == (1000, 600, 0)


def test_a_figure_that_is_not_told_hides_the_list(library: Library) -> None:
    library.hides = True
    use = opened().read()
    assert use is not None
    assert use.processes is None


def test_where_nothing_answers_there_is_no_figure(library: Library) -> None:
    nvml = opened()
    library.lost = True
    assert nvml.read() is None
    library.known = ()
    assert open_nvml(UUID, BUS, NAME) is None
    library.known = ("GPU-another",)
    assert open_nvml(UUID, BUS, NAME) is None
    assert open_nvml(UUID, BUS, "no_such_module_as_this") is None
