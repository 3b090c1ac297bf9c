"""The static entity-word graph that labels of the form ``Role (Country)`` imply (Li et al., SIGIR 2021)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

IS_A, COUNTRY, ITSELF = range(3)
NUM_KINDS = 3
_BRACKETED = re.compile(r"([^(]*)\(([^)]*)\)")


@dataclass(frozen=True)
class StaticGraph:
    """What entities and words have to do with each other, whatever the time.

    Attributes:
        words: role, country, or a label that has neither; in order of first appearance.
        edges: int32 [e, 3], entity, kind and word, sorted by entity; every entity has one or two.
    """

    words: tuple[str, ...]
    edges: np.ndarray

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> "StaticGraph":
        """Edges to the words before and inside the first brackets; a label without brackets is its own word."""
        words: dict[str, int] = {}
        edges = []
        for entity, label in enumerate(labels):
            bracketed = _BRACKETED.match(label)
            parts = [(ITSELF, label)]
            if bracketed:
                parts = [(IS_A, bracketed[1].strip()), (COUNTRY, bracketed[2])]
            edges += [(entity, kind, words.setdefault(word, len(words))) for kind, word in parts]
        return cls(tuple(words), np.array(edges, np.int32).reshape(-1, 3))

    def sizes(self) -> dict[str, int]:
        """The fields of a model's configuration that make room for this graph."""
        return {"num_words": len(self.words), "num_static_edges": len(self.edges)}
