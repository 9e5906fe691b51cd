"""Errors that are the user's to mend."""


class InputError(ValueError):
    """A mistake in what the user gave: one sentence saying what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class TrainingStoppedError(RuntimeError):
    """Training could not go on (gradients stayed non-finite, say); a checkpoint was kept."""


class UntrainedError(TrainingStoppedError):
    """A training that ended without a change of any weight: its point is not one of a front."""
