"""Errors that users can cause. Each message is one line: what is wrong, where, and what to do."""

import difflib
from collections.abc import Collection


class GeopolTkgError(Exception):
    """An expected failure; the command line prints its message and exits with 1."""


class DataError(GeopolTkgError):
    """Event files or a dataset that cannot be used as they are."""


def unknown_label(label: str, known: Collection[str], what: str) -> DataError:
    """An entity or relation that a model does not know, with the nearest that it does."""
    folded = {name.casefold(): name for name in known}
    wanted = str(label).casefold()
    longer = [name for name in folded if wanted and name.startswith(wanted)][:3]
    near = longer or difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(folded[name] for name in near)}?" if near else ""
    return DataError(f"{what} {label!r} is unknown to the model{hint}")


class CheckpointError(GeopolTkgError):
    """A checkpoint or .pt file that is missing, damaged or of another kind."""


class TrainingError(GeopolTkgError):
    """Training cannot start or go on (non-finite loss, no device, out of memory)."""


def no_gpu(asked: str, found: str) -> TrainingError:
    """A GPU was asked for, and jax has found something else."""
    return TrainingError(
        f"{asked} was asked for, but jax sees only {found}: install 'geopol-tkg[cuda13]' (or cuda12) and check the "
        "driver with nvidia-smi"
    )


class UsageError(GeopolTkgError):
    """Options that contradict each other or hold an impossible value; exit code 2."""
