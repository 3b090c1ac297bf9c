"""Building blocks against what they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_world import make_config

from geopol_tkg.models.decoders import ConvTransE
from geopol_tkg.models.layers import BatchNorm, dropout, l2_normalise, masked_moments


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


def test_padding_rows_move_no_statistics():
    values = jax.random.normal(jax.random.key(1), (6, 4, 3))
    padded = jnp.concatenate([values, 1e6 * jnp.ones((2, 4, 3))])
    alone = masked_moments(values, jnp.ones(6, bool))
    masked = masked_moments(padded, jnp.arange(8) < 6)
    for a, b in zip(alone, masked, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_folded_batch_norm_equals_convolution_then_norm():
    """The kernel with the norm folded in, against lax.conv and a plain batch norm over its output."""
    config = make_config()
    decoder = ConvTransE(config, num_inputs=4, key=jax.random.key(0))
    decoder.conv_norm.scale[...] = jax.random.normal(jax.random.key(5), (5,))
    decoder.conv_norm.bias[...] = jax.random.normal(jax.random.key(6), (5,))
    x = jax.random.normal(jax.random.key(1), (7, 8, 4))
    mask = jnp.arange(7) < 5
    convolved = jax.lax.conv_general_dilated(
        x, decoder.conv_weight[...], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    plain = BatchNorm(5)
    plain.scale[...], plain.bias[...] = decoder.conv_norm.scale[...], decoder.conv_norm.bias[...]
    expected = jax.nn.relu(plain(convolved + decoder.conv_bias[...], mask=mask))
    np.testing.assert_allclose(decoder._features(x, mask, jnp.float32), expected, atol=1e-5)
    np.testing.assert_allclose(decoder.conv_norm.mean[...], plain.mean[...], atol=1e-6)
    np.testing.assert_allclose(decoder.conv_norm.var[...], plain.var[...], atol=1e-5)
    running = decoder._features(x, None, jnp.float32)
    expected = jax.nn.relu(plain(convolved + decoder.conv_bias[...], mask=None))
    np.testing.assert_allclose(running, expected, atol=1e-5)


def test_running_statistics_take_the_unbiased_variance():
    norm = BatchNorm(1)
    norm(jnp.asarray([[1.0], [3.0]]), mask=jnp.ones(2, bool))
    assert float(norm.mean[0]) == pytest.approx(0.2)
    assert float(norm.var[0]) == pytest.approx(0.9 + 0.1 * 2)
    assert set(nnx.state(norm, nnx.BatchStat)) == {"mean", "var"}
