"""Walks a split in time order and ranks every query, by the protocol of the documentation.

For each timestamp the forecaster scores all entities for every fact in both directions; other true
answers are filtered out, and the target is ranked among the rest. JAX scores are ranked on their device.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from geopol_tkg.config import FilterName, SplitName
from geopol_tkg.data.dataset import Dataset, with_inverses
from geopol_tkg.data.history import HistoryIndex
from geopol_tkg.errors import DataError, GeopolTkgError
from geopol_tkg.evaluation.calibration import Probabilities, first_candidates
from geopol_tkg.evaluation.ranking import rank_counts, ranks, target_scores
from geopol_tkg.evaluation.results import Ranks
from geopol_tkg.models.base import Block, Expectant, Forecaster, ScoreFunction

_MOST_QUERIES, _FEWEST_QUERIES, _MOST_SCORES = 256, 16, 1 << 24
_FIRST = 3  # row of the first candidate, then of whether it is the target; below rank, score, excluded candidates
_FEWEST_PAIRS, _MORE_PAIRS = 4096, 8  # padded lists of excluded pairs have few lengths, so that few shapes compile


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
        block_size: queries scored at once; blocks are padded to it. By default :func:`default_block_size`.
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
        for start in range(0, len(queries), block_size):
            _check(should_stop)
            block = queries[start : start + block_size]
            blocks.append(_rank_block(score, block, block_size, answers, temperature))
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
    """Queries scored at once: 256, or fewer where there are so many entities that their scores need the room."""
    return max(_FEWEST_QUERIES, min(_MOST_QUERIES, _MOST_SCORES // num_entities))


def timestamps(facts: np.ndarray, num_relations: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each time index with its queries ``(s, r, o, t)`` in both directions, objects first: int32 [q, 4]."""
    times, starts = np.unique(facts[:, 3], return_index=True)
    for time, part in zip(times.tolist(), np.split(facts, starts[1:]), strict=True):
        yield time, with_inverses(part, num_relations)


def _check(should_stop: Callable[[], bool] | None) -> None:
    if should_stop is not None and should_stop():
        raise Interrupted


def _blocks(
    facts: np.ndarray, num_relations: int, block_size: int, should_stop: Callable[[], bool] | None
) -> Iterator[Block]:
    """What a forecaster will be asked."""
    for time, queries in timestamps(facts, num_relations):
        for start in range(0, len(queries), block_size):
            _check(should_stop)
            subjects, relations, *_ = padded(queries[start : start + block_size], block_size).T
            yield Block(time, subjects, relations)


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


def padded(queries: np.ndarray, block_size: int) -> np.ndarray:
    """Queries [b, 4], filled up by the first one again: [block_size, 4]."""
    return np.concatenate([queries, np.repeat(queries[:1], block_size - len(queries), axis=0)])


def _rank_block(
    score: ScoreFunction, queries: np.ndarray, block_size: int, answers: _Answers, temperature: float | None
) -> tuple[int, Any, np.ndarray]:
    """Number of queries, what :func:`_count` finds [block_size] and numbers of excluded candidates [b]."""
    rows, columns = answers.others(queries)
    subjects, relations, targets, _ = padded(queries, block_size).T
    scores = score(subjects, relations)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(scores, jax.Array):
        counted = _device_counter()(scores, targets, *_padded(rows, columns, block_size), temperature)
    else:
        excluded = np.zeros(scores.shape, bool)
        excluded[rows, columns] = True
        counted = _count(scores, targets, excluded, temperature)
    return len(queries), counted, np.bincount(rows, minlength=len(queries))


def _count(scores: Any, targets: Any, excluded: Any, temperature: Any) -> tuple[Any, ...]:
    """Candidates above and equal to the target, the target's score, whether a score is NaN: four [b].

    With a temperature also what :func:`first_candidates` finds.
    """
    is_nan = (scores != scores).any(axis=1)
    counted = *rank_counts(scores, targets, excluded), target_scores(scores, targets), is_nan
    return counted if temperature is None else (*counted, *first_candidates(scores, temperature))


@functools.cache
def _device_counter() -> Callable[..., Any]:
    """:func:`_count` for JAX arrays, with excluded pairs instead of a mask; rows out of range are padding."""
    import jax
    import jax.numpy as jnp

    def count(scores: Any, targets: Any, rows: Any, columns: Any, temperature: Any) -> tuple[Any, ...]:
        excluded = jnp.zeros(scores.shape, bool).at[rows, columns].set(True, mode="drop")
        return _count(scores, targets, excluded, temperature)

    return jax.jit(count)


def _padded(rows: np.ndarray, columns: np.ndarray, out_of_range: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs padded to one of few lengths with rows that do not exist."""
    size = _FEWEST_PAIRS
    while size < len(rows):
        size *= _MORE_PAIRS
    padding = size - len(rows)
    return (
        np.pad(rows, (0, padding), constant_values=out_of_range).astype(np.int32),
        np.pad(columns, (0, padding)).astype(np.int32),
    )


def _gather(blocks: list[tuple[int, Any, np.ndarray]], place: str) -> np.ndarray:
    """Rank, target score, number of excluded candidates, then what else was counted: float64 [3 or 7, q]."""
    parts = []
    for size, counted, excluded in blocks:
        greater, equal, score, is_nan, *more = (np.asarray(array)[:size] for array in counted)
        if is_nan.any():
            raise ScoreError(f"{place}: NaN among the scores of {int(is_nan.sum())} queries; nothing to rank")
        parts.append(np.stack([ranks(greater, equal), score, excluded, *more], dtype=np.float64))
    return np.concatenate(parts, axis=1)
