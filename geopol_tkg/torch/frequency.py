"""The frequency baseline: how often was this true before? As ``geopol-tkg eval frequency`` ranks."""

import numpy as np

from geopol_tkg.torch.facts import KnownFacts, Matches


def object_scores(facts: KnownFacts, subjects: np.ndarray, relations: np.ndarray) -> np.ndarray:
    """Counts of ``(s, r, o)``, plus half the share of ``o`` among the objects of ``r``: float64 [b, n]."""
    distinct, rows = np.unique(relations, return_inverse=True)
    shares = np.zeros((len(distinct), facts.num_entities))
    for row, relation in enumerate(distinct.tolist()):
        inverse, base = divmod(relation, facts.num_relations)
        chosen = facts.triples[:, 1] == base
        objects = facts.triples[chosen, 2 - 2 * inverse]
        shares[row] = _shares(np.bincount(objects, facts.counts[chosen], minlength=facts.num_entities))
    return _add_counts(shares[rows] / 2, facts.objects(subjects, relations))


def relation_scores(facts: KnownFacts, subjects: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Counts of ``(s, r, o)``, plus half the share of ``r`` among all facts: float64 [b, r2]."""
    shares = _shares(np.bincount(facts.triples[:, 1], facts.counts, minlength=facts.num_relations))
    scores = np.tile(shares / 2, (len(subjects), 2))
    return _add_counts(scores, facts.relations(subjects, objects))


def log_shares(scores: np.ndarray) -> np.ndarray:
    """Logarithms of each row's shares of its sum, -inf for none; all alike where nothing is known."""
    alike = scores + (scores.sum(axis=1, keepdims=True) == 0)
    with np.errstate(divide="ignore"):
        return np.log(alike / alike.sum(axis=1, keepdims=True)).astype(np.float32)


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(counts.sum(), 1)


def _add_counts(scores: np.ndarray, matches: Matches) -> np.ndarray:
    np.add.at(scores, (matches.query, matches.candidate), matches.count)
    return scores
