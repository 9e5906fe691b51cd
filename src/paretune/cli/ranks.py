"""A worker of several processes: ``python -m paretune.cli.ranks N sweep ...`` is torchrun's N.

Unlike torchrun it ends with the exit code of the process that failed first, and says nothing more
than that process did.
"""

import logging
import sys


def main() -> None:
    """Run the command line in so many processes."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    count, *arguments = sys.argv[1:]
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(["--standalone", f"--nproc-per-node={count}", "-m", "paretune", *arguments])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code > 0 else 1) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None


if __name__ == "__main__":
    main()
