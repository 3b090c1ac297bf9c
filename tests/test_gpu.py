"""On a CUDA device: the defaults, and the same numbers as on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import make_config, make_dataset, random_arrays

from geopol_tkg.config import TrainConfig
from geopol_tkg.data.history import build_for
from geopol_tkg.models.registry import build_context
from geopol_tkg.training.memory import MemoryMeter
from geopol_tkg.training.prepare import prepare
from geopol_tkg.training.run import resolve

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device():
    found = jax.devices()[0]
    if found.platform != "gpu":
        pytest.skip(f"no CUDA device: jax sees {found.platform}; make test-gpu asks for one")
    return found


def test_bf16_and_remat_are_the_defaults(device):
    config = resolve(TrainConfig(), device, "tirgn")
    assert (config.precision, config.remat, config.device) == ("bf16", True, "gpu")


def test_the_meter_reads_vram(device):
    meter = MemoryMeter(device)
    held = jnp.ones((1024, 1024, 16)).block_until_ready()
    meter.sample()
    assert meter.kind == "VRAM"
    assert meter.used_mb >= held.nbytes / 2**20
    assert meter.metrics()["system/vram_run_peak_mb"] >= meter.used_mb


@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_scores_equal_those_of_the_cpu(device, model_type):
    from models.test_networks import scores

    config, dataset = make_config(model_type), make_dataset()
    arrays = random_arrays(config)
    on_gpu = scores(dataset, config, arrays, 8)
    with jax.default_device(jax.devices("cpu")[0]):
        on_cpu = scores(dataset, config, arrays, 8)
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-4)


def loss_of_two_steps(model_type, **settings):
    config, dataset = make_config(model_type, dropout=0.0), make_dataset(size=300)
    history = build_for(dataset, window=config.history_window)
    train = TrainConfig(**{"batch_size": 0, "precision": "f32", "remat": False, **settings})
    context = build_context(dataset, history, config)
    plan, trainer, state, data = prepare(dataset, history, context, model=config, config=train)
    order = jnp.arange(2, dtype=jnp.int32)
    for shape in plan.shape_of[:2]:
        state = trainer.step(state, data, order, jax.random.key(0), shape=plan.shapes[shape])
    assert int(state.failed_step) == -1
    return float(state.loss_sum) / int(state.query_count)


@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_training_steps_are_those_of_the_cpu(device, model_type):
    with jax.default_device(jax.devices("cpu")[0]):
        on_cpu = loss_of_two_steps(model_type)
    assert loss_of_two_steps(model_type) == pytest.approx(on_cpu, rel=1e-4)
    assert loss_of_two_steps(model_type, precision="bf16", remat=True) == pytest.approx(on_cpu, rel=0.02)
