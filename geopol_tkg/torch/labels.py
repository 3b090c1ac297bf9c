"""From labels to ids, with a hint where a label is unknown."""

from typing import Any

import numpy as np

from geopol_tkg.errors import DataError, unknown_label


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
        raise unknown_label(label, self.ids, self.what)


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
