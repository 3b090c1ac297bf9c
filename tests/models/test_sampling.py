"""History summed entry by entry, against a dense mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geopol_tkg.data.history import HistoryIndex
from geopol_tkg.models.network import history_mask
from geopol_tkg.models.sampling import entries_of, history_log_probability

N, B = 9, 6


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("exclude", [False, True])
def test_history_log_probabilities_are_those_of_the_masked_softmax(exclude):
    """Slices name targets more than once: each counts once."""
    rng = np.random.default_rng(0)
    keys, times, objects = rng.integers(0, B, 60), rng.integers(0, 8, 60), rng.integers(0, N, 60)
    index = HistoryIndex.build(keys, times, objects)
    slices = index.slices(np.arange(B), np.full(B, 2), np.full(B, 7))
    slices[0] = 0  # a query that has seen nothing
    vectors, candidates = rng.normal(size=(B, 4)), rng.normal(size=(N, 4))
    capacity = int((slices[:, 1] - slices[:, 0]).sum()) + 5
    previous = jnp.asarray(index.previous())
    entries = entries_of(jnp.asarray(index.targets), jnp.asarray(slices), capacity=capacity, previous=previous)
    seen = history_mask(jnp.asarray(index.targets), jnp.asarray(slices), num_candidates=N, capacity=capacity)
    assert int(entries.first.sum()) == int(seen.sum()) < capacity - 5
    logits = jnp.where(seen, vectors @ candidates.T, -1e30 if exclude else 0)
    expected = jax.nn.log_softmax(logits)
    for target in range(N):
        targets = jnp.full(B, target)
        found, is_empty = history_log_probability(
            jnp.asarray(vectors), jnp.asarray(candidates), targets, entries, num_unseen_of=0 if exclude else N
        )
        assert is_empty.tolist() == (~seen.any(axis=1)).tolist()
        rows = np.flatnonzero(~np.asarray(is_empty)) if exclude else np.arange(B)
        for row in rows:
            if exclude and not seen[row, target]:
                assert found[row] < -1e29
            else:
                assert float(found[row]) == pytest.approx(float(expected[row, target]), abs=1e-12)
