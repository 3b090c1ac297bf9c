"""Searches in the tables of what was counted: that of a CPU and that of other devices."""

import jax
import numpy as np
import pytest

from geopol_tkg.models.past import _search_all, _search_until_found


@pytest.mark.parametrize("search", [_search_until_found, _search_all])
@pytest.mark.parametrize("size", [1, 7, 8, 9])
def test_a_search_finds_the_first_that_is_not_below(search, size):
    rng = np.random.default_rng(size)
    values = np.sort(rng.integers(0, 6, size)).astype(np.int32)
    low, high = np.sort(rng.integers(0, size + 1, (2, 200)), axis=0).astype(np.int32)
    low[0], high[0] = 0, size
    wanted = rng.integers(-1, 7, 200).astype(np.int32)
    expected = [i + np.searchsorted(values[i:j], value) for i, j, value in zip(low, high, wanted, strict=True)]
    np.testing.assert_array_equal(jax.jit(search)(values, low, high, wanted), expected)
