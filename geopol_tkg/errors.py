"""Errors that users can cause. Each message is one line: what is wrong, where, and what to do."""


class GeopolTkgError(Exception):
    """An expected failure; the command line prints its message and exits with 1."""


class DataError(GeopolTkgError):
    """Event files or a dataset that cannot be used as they are."""


class CheckpointError(GeopolTkgError):
    """A checkpoint or .pt file that is missing, damaged or of another kind."""


class TrainingError(GeopolTkgError):
    """Training cannot start or go on (non-finite loss, no device, out of memory)."""


class UsageError(GeopolTkgError):
    """Options that contradict each other or hold an impossible value; exit code 2."""
