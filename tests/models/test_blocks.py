"""Blocks of queries against the whole at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geopol_tkg.models.blocks import map_rows, over_blocks, sum_over_blocks

ROWS, WIDTH = 12, 5
RNG = np.random.default_rng(0)
VECTORS = jnp.asarray(RNG.normal(size=(ROWS, WIDTH)))
INDEX = jnp.asarray(RNG.integers(0, 7, ROWS), jnp.int32)
TABLE = jnp.asarray(RNG.normal(size=(7, WIDTH)))
ROW = jnp.arange(ROWS)
KEY = jax.random.key(1)


def score(vectors, index, table):
    """A row-wise function of floats, integers and what it closes over, a key among it."""
    noise = jax.random.normal(KEY, (WIDTH,))
    return jnp.tanh(vectors * table[index] + noise).sum(axis=1), index + 1


def loss(vectors, table, num_real, count):
    mask = jnp.arange(ROWS) < num_real
    values, numbers = map_rows(lambda rows: score(*rows, table), (vectors, INDEX), count, mask=mask)
    return jnp.sum(jnp.where(mask, values**2, 0)), (values, numbers)


@pytest.mark.parametrize("num_real", [12, 7, 4, 1])
@pytest.mark.parametrize("count", [2, 3, 12])
def test_values_and_gradients_are_those_of_one_block(num_real, count):
    whole, blocked = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=3)(VECTORS, TABLE, num_real, n)
        for n in (1, count)
    )
    np.testing.assert_allclose(blocked[0][0], whole[0][0], rtol=1e-6)
    for found, wanted in zip(blocked[1], whole[1], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    real = np.arange(ROWS) < num_real
    for found, wanted in zip(blocked[0][1], whole[0][1], strict=True):
        np.testing.assert_allclose(found[real], wanted[real], rtol=1e-6)
    assert blocked[0][1][1].dtype == jnp.int32


def test_blocks_behind_the_last_row_are_not_computed():
    vectors = VECTORS.at[6:].set(jnp.nan)
    (value, (values, numbers)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(vectors, TABLE, 6, 4)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not values[6:].any()
    assert not numbers[6:].any()


def test_no_row_at_all_gives_zeros():
    empty = jnp.zeros(ROWS, bool)
    assert not over_blocks(lambda rows: jnp.sum(rows) + 1, VECTORS, 3, mask=empty).any()
    assert over_blocks(lambda rows: jnp.sum(rows) + 1, VECTORS, 3, mask=~empty).all()


@pytest.mark.parametrize("num_real", [12, 7, 0])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_a_sum_and_its_gradients_are_those_of_its_parts(num_real, count):
    mask = jnp.arange(ROWS) < num_real

    def summed(vectors, table):
        def block(rows):
            own, index, real = rows
            return jnp.sum(jnp.where(real, score(own, index, table)[0] ** 2, 0))

        return 3 * sum_over_blocks(block, (vectors, INDEX, mask), count, mask=mask)

    value = jax.jit(summed)(VECTORS, TABLE)
    again, gradients = jax.jit(jax.value_and_grad(summed, argnums=(0, 1)))(VECTORS, TABLE)
    (whole, _), wanted = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(VECTORS, TABLE, num_real, 1)
    np.testing.assert_allclose([value, again], 3 * whole, rtol=1e-6)
    for found, plain in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, 3 * plain, rtol=1e-5, atol=1e-6)


def test_a_sum_looks_at_no_block_behind_the_last_row():
    def summed(vectors, table):
        return sum_over_blocks(lambda rows: jnp.sum(rows[0] * table[rows[1]]), (vectors, INDEX), 4, mask=ROW < 6)

    value, gradients = jax.value_and_grad(summed, argnums=(0, 1))(VECTORS.at[6:].set(jnp.nan), TABLE)
    np.testing.assert_allclose(value, jnp.sum(VECTORS[:6] * TABLE[INDEX[:6]]), rtol=1e-5)
    np.testing.assert_allclose(gradients[0], jnp.where(ROW[:, None] < 6, TABLE[INDEX], 0), rtol=1e-6)
    assert np.isfinite(gradients[1]).all()


@pytest.mark.parametrize(
    ("over", "wrapped"),
    [
        (map_rows, jax.jit),
        (sum_over_blocks, jax.checkpoint),
        pytest.param(map_rows, jax.checkpoint, marks=pytest.mark.slow),
        pytest.param(sum_over_blocks, jax.jit, marks=pytest.mark.slow),
    ],
)
def test_numbers_without_a_gradient_may_be_closed_over_inside_a_transformed_function(over, wrapped):
    def summed(count):
        def total(vectors, index, key):
            def values(rows):
                own, place = rows
                return jnp.sum(own * TABLE[index[place]] * jax.random.normal(key, (WIDTH,)), axis=1)

            if over is map_rows:
                return jnp.sum(over(values, (vectors, ROW), count, mask=ROW >= 0))
            return over(lambda rows: jnp.sum(values(rows)), (vectors, ROW), count, mask=ROW >= 0)

        return jax.grad(wrapped(total))(VECTORS, INDEX, KEY)

    with jax.checking_leaks():
        found = summed(3)
    np.testing.assert_allclose(found, summed(1), rtol=1e-6)
    assert found.any()
