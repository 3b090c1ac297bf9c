"""From labels to ids, with a hint where a label is unknown."""

import difflib
from typing import Any

import numpy as np

from geopol_tkg.errors import DataError


class Labels:
    """The entities, or the relations, that a model knows."""

    def __init__(self, ids: dict[str, int], what: str) -> None:
        self.ids, self.what = ids, what
        self.names = sorted(ids, key=ids.__getitem__)

    def look_up(self, label: str) -> int:
        """Id of a label.

        Raises:
            DataError: no such label; names the nearest ones.
        """
        if label in self.ids:
            return self.ids[label]
        folded = {known.casefold(): known for known in self.ids}
        wanted = str(label).casefold()
        longer = [known for known in folded if wanted and known.startswith(wanted)][:3]
        near = longer or difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(folded[match] for match in near)}?" if near else ""
        raise DataError(f"{self.what} {label!r} is unknown to the model{hint}")


def checked_ids(ids: Any, size: int, what: str) -> np.ndarray:
    """Ids as int64 [b].

    Raises:
        DataError: one of them is not among ``size``.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{what} ids are {array.dtype}{list(array.shape)}, wanted integers [b]")
    if wrong := array[(array < 0) | (array >= size)].tolist():
        raise DataError(f"{what} id {wrong[0]} is unknown to the model: it has 0 to {size - 1}")
    return array.astype(np.int64)
