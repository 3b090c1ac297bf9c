"""What the meter makes of what a device tells, and which step is checked before it starts.

The figures of a real GPU are in ``tests/test_gpu.py``.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from geopol_tkg.config import ModelConfig, TrainConfig
from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.history import build_for
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import TrainingError
from geopol_tkg.training.memory import MemoryMeter
from geopol_tkg.training.run import RunFiles, TrainingRun

MB = 1 << 20


def test_an_epochs_high_is_the_allocators_peak_where_the_epoch_raised_it():
    told = {}
    meter = MemoryMeter(SimpleNamespace(platform="gpu", memory_stats=lambda: told))

    def sample(in_use, peak):
        told.update(bytes_in_use=in_use * MB, peak_bytes_in_use=peak * MB)
        meter.sample()
        return meter.used_mb, meter.epoch_high_mb, meter.run_peak_mb

    meter.new_epoch()
    assert sample(10, 10) == (10, 10, 10)
    assert sample(11, 70) == (11, 70, 70)  # a step has come and gone
    meter.new_epoch()
    assert meter.epoch_high_mb == 70
    assert sample(12, 70) == (12, 12, 70)
    assert sample(11, 70) == (11, 12, 70)
    assert sample(11, 90) == (11, 90, 90)
    assert sample(11, 90) == (11, 90, 90)


def after_a_burst():
    """Days of 20 facts right after one of 30,000, then days of 100: fewer queries in a step, but a larger window."""
    rng = np.random.default_rng(0)
    sizes = {0: 30_000} | dict.fromkeys(range(1, 20), 20) | dict.fromkeys(range(30, 64), 100)
    times = np.repeat(list(sizes), list(sizes.values()))
    columns = [times, *(rng.integers(0, size, len(times)) for size in (300, 10, 300))]
    facts = np.unique(np.stack(columns, axis=1).astype(np.int32), axis=0)[:, [1, 2, 3, 0]]
    entities, relations = (tuple(f"{kind}{i}" for i in range(size)) for kind, size in (("e", 300), ("r", 10)))
    return Dataset(entities, relations, facts, Split(60, 62), TimeAxis(0, 1, None))


def test_the_step_that_needs_most_memory_is_found_and_refused(tmp_path, monkeypatch):
    dataset = after_a_burst()
    model = ModelConfig(
        model_type="regcn", num_entities=300, num_relations=10, embedding_dim=16, num_channels=2, history_window=0
    )
    run = TrainingRun(
        dataset,
        build_for(dataset, window=0),
        model=model,
        config=TrainConfig(batch_size=0),
        files=RunFiles(tmp_path, tmp_path, "regcn"),
        validate=lambda _forecaster: None,
    )
    first, second = run.step_memory()
    assert first.queries > second.queries
    assert first.temporary_bytes < second.temporary_bytes
    assert run.require_memory() == second
    monkeypatch.setattr("geopol_tkg.training.run.free_bytes", lambda _device: second.temporary_bytes - 1)
    with pytest.raises(TrainingError, match="needs"):
        run.require_memory()
