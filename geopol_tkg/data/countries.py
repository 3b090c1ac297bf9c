"""The countries that labels name: that of ``Police (Nigeria)`` and ``Nigeria`` in ICEWS, of ``NGACOP`` in CAMEO."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geopol_tkg.data.static_graph import IS_A, StaticGraph

_CODE_LETTERS = 3  # of a CAMEO actor code, that name its country or, without one, what kind of actor it is


@dataclass(frozen=True)
class Countries:
    """Which entities are of one country.

    Attributes:
        names: as the labels have them, ascending; each is that of two entities at least.
        of_entity: int32 [n], place among the names; -1 = none, or no other entity is of it.
    """

    names: tuple[str, ...]
    of_entity: np.ndarray

    @classmethod
    def from_labels(cls, labels: Sequence[str], *, entity_kind: str = "given") -> "Countries":
        """What stands in the first brackets of a label, or is a label itself; of codes, the first three letters."""
        if entity_kind == "code":
            named = [label[:_CODE_LETTERS] for label in labels]
        else:
            graph = StaticGraph.from_labels(labels)
            entity, kind, word = graph.edges.T
            by_entity = dict(zip(entity[kind != IS_A].tolist(), word[kind != IS_A].tolist(), strict=True))
            named = [graph.words[by_entity[i]] for i in range(len(labels))]
        members = Counter(named)
        names = sorted(name for name, count in members.items() if count > 1)
        places = {name: i for i, name in enumerate(names)}
        return cls(tuple(names), np.array([places.get(name, -1) for name in named], np.int32))
