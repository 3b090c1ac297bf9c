"""Walks a split in time order and ranks every query, by the protocol of the documentation.

For each timestamp the forecaster scores all entities for every fact in both directions, once for facts that differ in
their answer alone; other true answers are filtered out, and the target is ranked among the rest. JAX scores are ranked
on their device.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from geopol_tkg.config import FilterName, SplitName
from geopol_tkg.data.dataset import Dataset, with_inverses
from geopol_tkg.data.history import HistoryIndex
from geopol_tkg.errors import DataError, GeopolTkgError
from geopol_tkg.evaluation.calibration import Probabilities, first_candidates
from geopol_tkg.evaluation.queries import MOST_ANSWERS, QueryBlock, query_blocks, timestamps
from geopol_tkg.evaluation.ranking import rank_counts, ranks, target_scores
from geopol_tkg.evaluation.results import Ranks
from geopol_tkg.models.base import Block, Expectant, Forecaster, ScoreFunction

_MOST_QUERIES, _FEWEST_QUERIES, _MOST_SCORES = 256, 16, 1 << 24
_FIRST = 3  # row of the first candidate, then of whether it is the target; below rank, score, excluded candidates
_FEWEST_PAIRS, _MORE_PAIRS = 16384, 8  # padded lists of excluded pairs have few lengths, so that few shapes compile


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The caller asked to stop."""


class ScoreError(GeopolTkgError):
    """A forecaster gave scores that cannot be ranked."""


def evaluate(
    forecaster: Forecaster,
    dataset: Dataset,
    *,
    split: SplitName = "test",
    filter: FilterName = "time",
    temperature: float | None = None,
    block_size: int | None = None,
    known_entities: np.ndarray | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ranks:
    """Rank all queries of a split.

    Args:
        filter: which other true answers are no candidates: those of the same time, of any time, none.
        temperature: of a forecaster whose scores are log-probabilities, to measure these too; ranks know none.
        block_size: distinct ``(s, r, ?)`` scored at once; blocks are padded to it. By default
            :func:`default_block_size`.
        known_entities: bool [n], what the forecaster was trained on; by default, what train facts name.
        should_stop: asked before each block.
        progress: called with the queries done and their total after each timestamp.

    Raises:
        DataError: the split is empty.
        ScoreError: a score is NaN.
        Interrupted: ``should_stop`` said so.
    """
    facts = dataset.facts_of(split)
    if not len(facts):
        raise DataError(f"the {split} split is empty: nothing to evaluate")
    block_size = block_size or default_block_size(dataset.num_entities)
    answers = _Answers(dataset, facts, filter)
    if isinstance(forecaster, Expectant):
        forecaster.expect(_blocks(facts, dataset.num_relations, block_size, should_stop))
    counted = []
    done = 0
    for time, queries in timestamps(facts, dataset.num_relations):
        score = forecaster.at(time)
        blocks = []
        for block in query_blocks(queries, block_size):
            _check(should_stop)
            blocks.append((block, *_rank_block(score, block, queries[block.place], answers, temperature)))
        found = _gather(blocks, f"{forecaster.name} at {dataset.time_axis.label(time)}")
        if temperature is not None:
            found[_FIRST] = found[_FIRST] == queries[:, 2]
        counted.append(found)
        done += len(queries)
        if progress is not None:
            progress(done, 2 * len(facts))
    ranked, asked = np.split(np.concatenate(counted, axis=1), [_FIRST])
    return Ranks.of(
        dataset,
        facts,
        ranked,
        horizon=forecaster.horizon,
        known=known_entities,
        probabilities=None if temperature is None else Probabilities.of(temperature, ranked[1], asked),
    )


def default_block_size(num_entities: int) -> int:
    """Distinct ``(s, r, ?)`` scored at once: 256, or fewer where so many entities are that scores need the room."""
    return max(_FEWEST_QUERIES, min(_MOST_QUERIES, _MOST_SCORES // num_entities))


def _check(should_stop: Callable[[], bool] | None) -> None:
    if should_stop is not None and should_stop():
        raise Interrupted


def _blocks(
    facts: np.ndarray, num_relations: int, block_size: int, should_stop: Callable[[], bool] | None
) -> Iterator[Block]:
    """What a forecaster will be asked."""
    for time, queries in timestamps(facts, num_relations):
        for block in query_blocks(queries, block_size):
            _check(should_stop)
            yield Block(time, block.subjects, block.relations)


class _Answers:
    """The true objects of a query that the filter takes out of the candidates."""

    def __init__(self, dataset: Dataset, facts: np.ndarray, filter: FilterName) -> None:
        self._num_relations = dataset.num_relations
        self._by_time = filter != "static"
        if filter == "static":
            facts = _timeless(dataset.facts)
        if filter == "raw":
            facts = facts[:0]
        known = with_inverses(facts, dataset.num_relations)
        self._index = HistoryIndex.build(self._keys(known), known[:, 3], known[:, 2])

    def _keys(self, queries: np.ndarray) -> np.ndarray:
        return queries[:, 0].astype(np.int64) * 2 * self._num_relations + queries[:, 1]

    def others(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Query number and entity of every excluded candidate of queries [b, 4]; never a target."""
        time = queries[:, 3] if self._by_time else np.zeros(len(queries), np.int32)
        rows, objects = self._index.sparse(self._index.slices(self._keys(queries), time, time + 1))
        kept = objects != queries[rows, 2]
        return rows[kept], objects[kept]


def _timeless(facts: np.ndarray) -> np.ndarray:
    """Distinct ``(s, r, o)``, all at time 0."""
    return np.unique(facts * np.array([1, 1, 1, 0], facts.dtype), axis=0)


def _rank_block(
    score: ScoreFunction, block: QueryBlock, queries: np.ndarray, answers: _Answers, temperature: float | None
) -> tuple[tuple[Any, ...], np.ndarray]:
    """What is counted of a block's queries [q, 4] and of its rows, and numbers of excluded candidates [q].

    The former: candidates above and equal to the target, the target's score, [q] or more; whether a score is NaN, [b].
    With a temperature also what :func:`first_candidates` finds, of rows.
    """
    excluded, candidates = answers.others(queries)
    scores = score(block.subjects, block.relations)
    jax = sys.modules.get("jax")
    count = _count_on_device if jax is not None and isinstance(scores, jax.Array) else _count
    counted = count(scores, block.row, queries[:, 2], excluded, candidates, temperature)
    return counted, np.bincount(excluded, minlength=len(queries))


def _count(
    scores: Any,
    row: np.ndarray,
    targets: np.ndarray,
    excluded: np.ndarray,
    candidates: np.ndarray,
    temperature: float | None,
) -> tuple[Any, ...]:
    """What :func:`_rank_block` says, of queries [q] that ask a row of scores each; and what is excluded of each."""
    parts = []
    for start in range(0, len(row), len(scores)):
        part = slice(start, start + len(scores))
        own = scores[row[part]]
        inside = (start <= excluded) & (excluded < part.stop)
        mask = np.zeros(own.shape, bool)
        mask[excluded[inside] - start, candidates[inside]] = True
        parts.append((*rank_counts(own, targets[part], mask), target_scores(own, targets[part])))
    of_queries = map(np.concatenate, zip(*parts, strict=True))
    of_rows = () if temperature is None else first_candidates(scores, temperature)
    return (*of_queries, (scores != scores).any(axis=1), *of_rows)


def _count_on_device(
    scores: Any,
    row: np.ndarray,
    targets: np.ndarray,
    excluded: np.ndarray,
    candidates: np.ndarray,
    temperature: float | None,
) -> tuple[Any, ...]:
    """:func:`_count` of JAX scores, padded to few sizes, so that few programs are compiled."""
    from geopol_tkg.evaluation.device import count

    most = MOST_ANSWERS * len(scores)
    size = _FEWEST_PAIRS
    while size < len(excluded):
        size *= _MORE_PAIRS
    queries = (_filled(row, most, 0), _filled(targets, most, 0))
    pairs = (_filled(excluded, size, most), _filled(candidates, size, 0))
    return count(scores, *queries, *pairs, np.int32(len(row)), temperature)


def _filled(values: np.ndarray, size: int, value: int) -> np.ndarray:
    return np.pad(values, (0, size - len(values)), constant_values=value).astype(np.int32)


def _gather(blocks: list[tuple[QueryBlock, tuple[Any, ...], np.ndarray]], place: str) -> np.ndarray:
    """Rank, target score, number of excluded candidates, then what else was counted: float64 [3 or 7, q]."""
    parts = []
    for block, counted, excluded in blocks:
        greater, equal, score = (np.asarray(array)[: len(block.row)] for array in counted[:3])
        is_nan, *more = (np.asarray(array)[block.row] for array in counted[3:])
        if is_nan.any():
            raise ScoreError(f"{place}: NaN among the scores of {int(is_nan.sum())} queries; nothing to rank")
        parts.append(np.stack([ranks(greater, equal), score, excluded, *more], dtype=np.float64))
    found = np.concatenate(parts, axis=1)
    in_order = np.empty_like(found)
    in_order[:, np.concatenate([block.place for block, *_ in blocks])] = found
    return in_order
