"""Building blocks against what they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_world import make_config

from geopol_tkg.models.decoders import ConvTransE, Queries
from geopol_tkg.models.graph import _rounded_rows
from geopol_tkg.models.layers import (
    BatchNorm,
    GRUCell,
    add_bias,
    dot,
    dropout,
    inner,
    l2_normalise,
    merged,
    weighted_moments,
)


def test_zero_rows_stay_zero_and_pass_no_nan():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    assert np.array_equal(l2_normalise(x), [[np.float32(0.6), np.float32(0.8)], [0, 0]])
    assert np.isfinite(jax.grad(lambda x: l2_normalise(x).sum())(x)).all()


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_keeps_the_mean_at_the_stated_rate(rate):
    x = jnp.ones((500, 401))
    dropped = dropout(x, rate, jax.random.key(0))
    share = float((dropped == 0).mean())
    assert share == pytest.approx(rate, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)
    assert dropout(x, rate, None) is x


def test_gradients_of_rounded_rows_sum_in_float32():
    """A bfloat16 sum of ones stops at 256."""
    x = jnp.array([[1.0, 3.14159], [2.0, 5.0]])
    index = jnp.zeros(1000, jnp.int32)
    rows, pullback = jax.vjp(lambda x: _rounded_rows(x, index, jnp.bfloat16), x)
    assert rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, np.tile(rounded(x)[0], (1000, 1)))
    np.testing.assert_array_equal(pullback(jnp.ones_like(rows))[0], [[1000, 1000], [0, 0]])


def rounded(x):
    """In bfloat16, as exact float64."""
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 2), (5, 1, 3), (3, 8, 1), (66, 200, 31)], ids=str)
def test_bf16_products_round_their_operands_and_sum_in_float32(sizes):
    count, size, width = sizes
    x, gradient, weight = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(count, 2, size), (count, 2, width), (size, width)])
    )

    @jax.jit
    def with_gradients(x, weight, gradient):
        product, pullback = jax.vjp(lambda x, weight: dot(x, weight, jnp.bfloat16), x, weight)
        inners, inner_pullback = jax.vjp(lambda x, rows: inner(x[:, 0], rows, jnp.bfloat16), x, weight.T)
        return product, *pullback(gradient), inners, *inner_pullback(gradient[:, 0])

    exact_x, exact_weight, exact_gradient = rounded(x), rounded(weight), rounded(gradient)
    to_first = np.zeros_like(exact_x)
    to_first[:, 0] = exact_gradient[:, 0] @ exact_weight.T
    wanted = (
        exact_x @ exact_weight,
        exact_gradient @ exact_weight.T,
        np.einsum("bji,bjo->io", exact_x, exact_gradient),
        exact_x[:, 0] @ exact_weight,
        to_first,
        exact_gradient[:, 0].T @ exact_x[:, 0],
    )
    for found, exact in zip(with_gradients(x, weight, gradient), wanted, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


def test_a_bias_of_bf16_rows_has_a_gradient_summed_in_float32():
    x, bias = jnp.zeros((300, 4, 2), jnp.bfloat16), jnp.ones(2)
    sums, gradient = jax.value_and_grad(lambda bias: add_bias(x, bias).astype(jnp.float32).sum())(bias)
    assert (float(sums), gradient.tolist(), gradient.dtype) == (2400, [1200, 1200], jnp.float32)


def test_a_gru_and_its_gradient_are_those_of_its_definition():
    x, hidden = (jax.random.normal(jax.random.key(i), (5, size)) for i, size in ((1, 3), (2, 4)))
    structure, weights = nnx.split(GRUCell(3, 4, key=jax.random.key(0)))

    def plain(x, hidden, weights):
        cell = nnx.merge(structure, weights)
        input_gates = x @ cell.input_weight[...] + cell.input_bias[...]
        hidden_gates = hidden @ cell.hidden_weight[...] + cell.hidden_bias[...]
        reset_x, update_x, new_x = jnp.split(input_gates, 3, axis=1)
        reset_h, update_h, new_h = jnp.split(hidden_gates, 3, axis=1)
        update = jax.nn.sigmoid(update_x + update_h)
        return (1 - update) * jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h) + update * hidden

    def ours(x, hidden, weights):
        return nnx.merge(structure, weights)(x, hidden, jnp.float32)

    found, wanted = (jax.vjp(function, x, hidden, weights) for function in (ours, plain))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    gradient = jax.random.normal(jax.random.key(3), (5, 4))
    gradients = [jax.tree.leaves(part[1](gradient)) for part in (found, wanted)]
    assert len(gradients[0]) == 2 + 4
    for own, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)


def test_padding_rows_move_no_statistics():
    values = jax.random.normal(jax.random.key(1), (6, 4, 3))
    padded = jnp.concatenate([values, 1e6 * jnp.ones((2, 4, 3))])
    times = np.array([1, 3, 1, 1, 2, 1])
    each = jnp.repeat(values, times, axis=0)
    alone = weighted_moments(each, jnp.ones(len(each), jnp.int32))
    weighted = weighted_moments(padded, np.append(times, [0, 0]))
    for a, b in zip(alone, weighted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_moments_of_more_samples_than_int32_counts():
    values = jax.random.normal(jax.random.key(1), (4, 200, 2))
    few, many = (weighted_moments(values, jnp.full(4, weight)) for weight in (1, 2**23))
    for a, b in zip(many[:2], few[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert many.count == 800 * 2.0**23
    assert merged(jax.tree.map(lambda value: jnp.stack([value] * 2), many)).count == 1600 * 2.0**23


def test_moments_of_parts_are_those_of_the_whole():
    values = 3 + jax.random.normal(jax.random.key(1), (12, 4, 3))
    mask = jnp.arange(12) < 7
    weight = mask * (1 + jnp.arange(12) % 3)
    whole = weighted_moments(values, weight)
    parts = jax.vmap(weighted_moments)(values.reshape(4, 3, 4, 3), weight.reshape(4, 3))
    for a, b in zip(merged(parts), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_decoder_equals_its_plain_form(training, num_blocks):
    """The kernel with the norm folded in, against lax.conv and batch norms written out."""
    decoder = ConvTransE(make_config(dropout=0.0), num_inputs=2, key=jax.random.key(0))
    for number, norm in enumerate((decoder.input_norm, decoder.conv_norm, decoder.output_norm)):
        for offset, parameter in enumerate((norm.scale, norm.bias, norm.mean, norm.var)):
            parameter[...] = jnp.exp(jax.random.normal(jax.random.key(4 * number + offset), parameter.shape))
    before = jax.tree.map(jnp.copy, nnx.state(decoder, nnx.BatchStat))
    rows = jax.random.normal(jax.random.key(1), (2, 8, 8))
    weight = np.array([1, 4, 1, 2, 1, 1, 0, 0])
    ids = jnp.arange(8)
    queries = Queries(ids, ids, jnp.zeros((8, 2), jnp.int32), jnp.asarray(weight), ids)
    key = jax.random.key(2) if training else None

    def inputs(part):
        return [rows[0, part.first], rows[1, part.second]]

    found = decoder(queries, inputs, key=key, dtype=jnp.float32, num_blocks=num_blocks)

    def norm(module, x, running):
        values = np.repeat(np.asarray(x), weight, axis=0) if training else None
        mean, var = (values.mean((0, 1)), values.var((0, 1))) if training else (running.mean[...], running.var[...])
        return (x - mean) / np.sqrt(var + 1e-5) * module.scale[...] + module.bias[...]

    x = norm(decoder.input_norm, jnp.stack(list(rows), axis=-1), before.input_norm)
    convolved = jax.lax.conv_general_dilated(
        x, decoder.conv_weight[...], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    x = jax.nn.relu(norm(decoder.conv_norm, convolved + decoder.conv_bias[...], before.conv_norm))
    x = jnp.einsum("bdc,dco->bo", x, decoder.linear_weight[...]) + decoder.linear_bias[...]
    expected = jax.nn.relu(norm(decoder.output_norm, x[:, None], before.output_norm)[:, 0])
    np.testing.assert_allclose(found[:6], expected[:6], atol=2e-5)


def test_running_statistics_take_the_unbiased_variance():
    norm = BatchNorm(1)
    norm.fit(weighted_moments(jnp.asarray([[1.0], [3.0]]), jnp.ones(2, jnp.int32)))
    assert float(norm.mean[0]) == pytest.approx(0.2)
    assert float(norm.var[0]) == pytest.approx(0.9 + 0.1 * 2)
    assert set(nnx.state(norm, nnx.BatchStat)) == {"mean", "var"}
