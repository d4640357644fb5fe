"""Processor time and memory of steps, with the standard library only: the peer's environment has no polyturn."""

from __future__ import annotations

import os
import time


def resident_mb() -> float:
    """Resident memory of this process now."""
    return _status("VmRSS")


class Meter:
    """Counts steps from `begin` to `end`: CPU-seconds of all threads, wall seconds, and the peak of resident memory.

    Attributes:
        cpu: CPU-seconds (user and system) of each step.
        wall: Wall seconds of each step.
    """

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self._before = resident_mb()
        _forget_peak()
        self._begun: tuple[float, float] | None = None

    def begin(self) -> None:
        """A step begins; one that had begun ends."""
        self.end()
        self._begun = time.process_time(), time.perf_counter()

    def end(self) -> None:
        """The step ends."""
        if self._begun is not None:
            self.cpu.append(time.process_time() - self._begun[0])
            self.wall.append(time.perf_counter() - self._begun[1])
            self._begun = None

    def figures(self) -> dict[str, object]:
        """What was counted, without the first step, which also warms up; the peak over the memory of before."""
        return {"cpu": self.cpu[1:], "wall": self.wall[1:], "peak_mb": _status("VmHWM") - self._before}


def _status(name: str) -> float:
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) / 1024 for line in file if line.startswith(f"{name}:"))


def _forget_peak() -> None:
    with open(f"/proc/{os.getpid()}/clear_refs", "w") as file:
        file.write("5")
