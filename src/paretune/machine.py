"""How busy the machine is beside the threads that a run adds, and who else is of the run."""

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


# Open MPI's and Intel MPI's names of torchrun's, as accelerate has them.
_MPI = (
    {
        "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "RANK": "OMPI_COMM_WORLD_RANK",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
        "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    {
        "WORLD_SIZE": "PMI_SIZE",
        "RANK": "PMI_RANK",
        "LOCAL_RANK": "MPI_LOCALRANKID",
        "LOCAL_WORLD_SIZE": "MPI_LOCALNRANKS",
    },
)


def join_mpi() -> None:
    """Let processes that ``mpirun`` started know each other as those of torchrun do.

    Torch, transformers and accelerate read torchrun's variables, accelerate alone MPI's, too.
    """
    if "WORLD_SIZE" in os.environ:
        return
    for names in _MPI:
        found = {ours: os.environ.get(theirs, "") for ours, theirs in names.items()}
        if all(found.values()) and int(found["WORLD_SIZE"]) > 1:
            if found["WORLD_SIZE"] == found["LOCAL_WORLD_SIZE"]:  # one machine: they meet on it
                found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
            for name, value in found.items():
                os.environ.setdefault(name, value)
            return
