"""On a CUDA device: the defaults, and the same numbers as on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import make_config, make_dataset, random_arrays

from geopol_tkg.config import TrainConfig
from geopol_tkg.training.memory import MemoryMeter
from geopol_tkg.training.run import resolve

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device():
    found = jax.devices()[0]
    if found.platform != "gpu":
        pytest.skip(f"no CUDA device: jax sees {found.platform}")
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
