"""How busy the machine is, beside the threads that a run adds."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A machine as a run finds it.

    Attributes:
        load: The load average of the last minute: processes that ran or waited for a core. It is
            the whole machine's, and 0 on systems that tell none.
        cores: Of the whole machine.
        threads: How many the run computes with, over its processes.
    """

    load: float
    cores: int
    threads: int

    @property
    def busy(self) -> bool:
        """Whether the load, in whole processes, needs cores that the threads need, too."""
        return round(self.load) > max(self.cores - self.threads, 0)

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"load {self.load:.1f} on {self.cores} cores, {threads}"


def this_machine(threads: int | None = None) -> Machine:
    """The machine now.

    Args:
        threads: Of the run; by default those of this process and of those started with it.
    """
    if threads is None:
        threads = own_threads() * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return Machine(load, os.cpu_count() or 1, threads)


def own_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def own_threads() -> int:
    """How many threads OpenMP takes: ``OMP_NUM_THREADS``, or else one a core."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(given) if given.isdigit() and int(given) else own_cores()
