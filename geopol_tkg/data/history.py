"""History vocabulary: what was seen before a query, exact for every query at every time.

Facts in both directions are sorted by ``(subject, relation, time)``, and again by
``(subject, object, time)``. What a query of time ``t`` has seen within its window is then one
contiguous slice, found by binary search. The file holds the two sort orders, 16 bytes per fact at
most, instead of one matrix per timestamp. Slices can name a target more than once; a history mask
does not mind.
"""

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from geopol_tkg.data.dataset import Dataset, with_inverses
from geopol_tkg.data.files import replace_file
from geopol_tkg.errors import DataError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class HistoryIndex:
    """Occurrences of targets per key, in the order of ``(key, time)``.

    Attributes:
        order: int32 [h], which occurrences, out of all that the index was built from.
        targets: int32 [h], what was seen.
        order_keys: int64 [h], ``key * time_span + time - first_time``, ascending.
        first_time, time_span: the range of times that order_keys can hold.
    """

    order: np.ndarray
    targets: np.ndarray
    order_keys: np.ndarray
    first_time: int
    time_span: int

    @classmethod
    def build(
        cls, keys: np.ndarray, times: np.ndarray, targets: np.ndarray, *, order: np.ndarray | None = None
    ) -> "HistoryIndex":
        """Sort occurrences (all [h], times may be negative) by key, then time; or take ``order`` as it is.

        Raises:
            DataError: so many keys at so many times have no numbers of 64 bits.
        """
        first = int(times.min(initial=0))
        span = int(times.max(initial=0)) - first + 2
        if (int(keys.max(initial=0)) + 1) * span > np.iinfo(np.int64).max:
            raise DataError(
                f"{span:,} time steps are too many for a history of so many entities: use a coarser --granularity, or "
                "number the timestamps of a quadruple folder 0, 1, 2, ..."
            )
        order_keys = keys.astype(np.int64) * span + (times.astype(np.int64) - first)
        if order is None:
            order = np.argsort(order_keys, kind="stable")
        return cls(order.astype(np.int32), targets[order].astype(np.int32), order_keys[order], first, span)

    def slices(self, keys: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Slices of ``targets`` with ``start <= time < end`` for each key: int32 [b, 2]."""
        base = np.asarray(keys, np.int64) * self.time_span
        low, high = (
            np.searchsorted(
                self.order_keys,
                base + np.clip(np.asarray(time, np.int64) - self.first_time, 0, self.time_span - 1),
            )
            for time in (start, end)
        )
        return np.stack([low, high], axis=-1).astype(np.int32)

    def previous(self) -> np.ndarray:
        """Position of each occurrence's predecessor, the same target of the same key; -1 without one: int32 [h]."""
        keys = self.order_keys // self.time_span
        order = np.lexsort((np.arange(len(keys)), self.targets, keys))
        same = (keys[order][1:] == keys[order][:-1]) & (self.targets[order][1:] == self.targets[order][:-1])
        found = np.full(len(keys), -1, np.int32)
        found[order[1:][same]] = order[:-1][same]
        return found

    def sparse(self, slices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Query number and target of every occurrence in the slices: int32 [p], [p]."""
        lengths = slices[:, 1] - slices[:, 0]
        rows = np.repeat(np.arange(len(slices), dtype=np.int32), lengths)
        starts = np.repeat(slices[:, 0] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return rows, self.targets[np.arange(len(rows)) + starts]


@dataclass(frozen=True)
class HistoryVocabulary:
    """Objects seen for ``(s, r, ?)`` and relations seen for ``(s, ?, o)``, strictly before a time.

    Attributes:
        objects: keys ``s * 2R + r`` over both directions.
        relations: keys ``s * N + o`` over both directions.
        window: steps looked back; 0 for all history.
    """

    objects: HistoryIndex
    relations: HistoryIndex
    num_entities: int
    num_relations: int
    window: int

    @classmethod
    def build(
        cls,
        facts: np.ndarray,
        *,
        num_entities: int,
        num_relations: int,
        window: int,
        orders: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> "HistoryVocabulary":
        """Index facts [f, 4] in both directions; without a window only first occurrences are kept.

        ``orders`` are the sort orders of objects and relations where they are known already.
        """
        subject, relation, object_, time = with_inverses(facts, num_relations).astype(np.int64).T
        object_keys = subject * 2 * num_relations + relation
        relation_keys = subject * num_entities + object_
        object_order, relation_order = orders or (
            None if window else _first_occurrences(object_keys * num_entities + object_, time, object_keys),
            None if window else _first_occurrences(relation_keys * 2 * num_relations + relation, time, relation_keys),
        )
        return cls(
            objects=HistoryIndex.build(object_keys, time, object_, order=object_order),
            relations=HistoryIndex.build(relation_keys, time, relation, order=relation_order),
            num_entities=num_entities,
            num_relations=num_relations,
            window=window,
        )

    @cached_property
    def num_rows(self) -> int:
        """Distinct subject-relation pairs, both directions."""
        return len(np.unique(self.objects.order_keys // self.objects.time_span))

    def object_slices(
        self, subject: np.ndarray, relation: np.ndarray, time: np.ndarray | int, *, horizon: int | None = None
    ) -> np.ndarray:
        """Slices of ``objects.targets`` visible to queries ``(s, r, ?, t)``: int32 [b, 2].

        Args:
            horizon: nothing from this time on is visible; the window ends at ``t`` all the same.
        """
        keys = np.asarray(subject, np.int64) * 2 * self.num_relations + relation
        return self.objects.slices(keys, *self._visible(time, horizon))

    def relation_slices(self, subject: np.ndarray, object_: np.ndarray, time: np.ndarray | int) -> np.ndarray:
        """Slices of ``relations.targets`` visible to queries ``(s, ?, o, t)``: int32 [b, 2]."""
        keys = np.asarray(subject, np.int64) * self.num_entities + object_
        return self.relations.slices(keys, *self._visible(time))

    def _visible(self, time: np.ndarray | int, horizon: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        end = np.asarray(time, np.int64)
        start = end - self.window if self.window else np.full_like(end, np.iinfo(np.int32).min)
        if horizon is not None:
            end = np.minimum(end, horizon)
        return np.minimum(start, end), end

    def save(self, path: Path, *, dataset_hash: str) -> None:
        """Write ``history.npz``: plain arrays, no pickle."""
        arrays = {
            "format_version": np.int32(FORMAT_VERSION),
            "dataset_hash": np.array(dataset_hash),
            "window": np.int32(self.window),
            "object_order": self.objects.order,
            "relation_order": self.relations.order,
        }
        with replace_file(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle

    @classmethod
    def load(cls, path: Path, dataset: Dataset) -> "HistoryVocabulary":
        """Read the ``history.npz`` of a dataset.

        Raises:
            DataError: the file is missing, damaged, of another format, or made from other facts.
        """
        if not path.is_file():
            raise DataError(f"{path}: no history vocabulary; run geopol-tkg vocab")
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if int(arrays["format_version"]) != FORMAT_VERSION:
                    raise DataError(f"{path}: another format version; run geopol-tkg vocab again")
                if str(arrays["dataset_hash"]) != dataset.content_hash:
                    raise DataError(f"{path}: made from another dataset; run geopol-tkg vocab again")
                window = int(arrays["window"])
                orders = arrays["object_order"], arrays["relation_order"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: damaged ({error}); run geopol-tkg vocab again") from error
        return build_for(dataset, window=window, orders=orders)


def load_or_build(dataset: Dataset, *, window: int) -> tuple[HistoryVocabulary, str | None]:
    """The dataset's vocabulary, and why it had to be built (None when ``history.npz`` served)."""
    if dataset.path is not None:
        try:
            found = HistoryVocabulary.load(dataset.path / "history.npz", dataset)
        except DataError as error:
            reason = str(error)
        else:
            if found.window == window:
                return found, None
            reason = f"{dataset.path / 'history.npz'}: window {found.window}, wanted {window}"
    else:
        reason = "the dataset has no directory"
    return build_for(dataset, window=window), reason


def build_for(
    dataset: Dataset, *, window: int, orders: tuple[np.ndarray, np.ndarray] | None = None
) -> HistoryVocabulary:
    """Vocabulary of a whole dataset; lookups see only what is before their time."""
    return HistoryVocabulary.build(
        dataset.facts,
        num_entities=dataset.num_entities,
        num_relations=dataset.num_relations,
        window=window,
        orders=orders,
    )


def _first_occurrences(identity: np.ndarray, times: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Positions of the first occurrence of each identity, ordered by key, then time."""
    by_time = np.argsort(times, kind="stable")
    _, first = np.unique(identity[by_time], return_index=True)
    kept = by_time[first]
    return kept[np.lexsort((times[kept], keys[kept]))]
