"""What a whole training run compiles, and that a second run need not."""

import logging
import re

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from small_world import make_config, make_dataset

from geopol_tkg.config import TrainConfig
from geopol_tkg.data.history import build_for
from geopol_tkg.evaluation.evaluator import evaluate
from geopol_tkg.training.run import RunFiles, TrainingRun
from geopol_tkg.training.trackers import TrainingLogger

MOST = 6
ONE_OPERATION = {"_threefry_seed", "stage", "copy"}  # a key, and what passes an array on


def train(folder):
    dataset = make_dataset(size=400)
    config = make_config("regcn", num_layers=1, embedding_dim=6)  # that no other test has compiled
    run = TrainingRun(
        dataset,
        build_for(dataset, window=config.history_window),
        model=config,
        config=TrainConfig(epochs=2, batch_size=60),
        files=RunFiles(folder, folder / "runs", "regcn"),
        validate=lambda forecaster: evaluate(forecaster, dataset, split="valid", block_size=64).metrics(),
    )
    logger = TrainingLogger(
        folder / "runs", folder / "metrics.jsonl", model="regcn", first_epoch=1, wandb_run=None, warn=print
    )
    results = list(run.epochs(logger, should_stop=lambda: None, on_step=lambda done: None))
    logger.close({})
    assert [result.standing.epoch for result in results] == [1, 2]
    return run


@pytest.fixture
def empty_cache(tmp_path):
    """A persistent compilation cache of its own."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path / "compiled"), 0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_run_compiles_few_programs_and_the_next_one_none(tmp_path, empty_cache, caplog, monkeypatch):
    monkeypatch.setattr("geopol_tkg.training.plan._LEAST_QUERIES", 1)
    caplog.set_level(logging.DEBUG, "jax")
    jax.clear_caches()  # what other tests have compiled would not reach the empty cache
    run = train(tmp_path / "first")
    messages = [record.getMessage() for record in caplog.records]
    compiled = [found[1] for text in messages if (found := re.match(r"Finished XLA compilation of jit\((\w+)\)", text))]
    programs = [name for name in compiled if name not in ONE_OPERATION]
    assert programs.count("step") == len(run.plan.shapes) == 2
    assert len(programs) <= MOST, " ".join(programs)

    caplog.clear()
    jax.clear_caches()  # as in another process
    train(tmp_path / "second")
    messages = [record.getMessage() for record in caplog.records]
    hits = [text for text in messages if text.startswith("Persistent compilation cache hit")]
    assert sum("jit_step" in text for text in hits) == len(run.plan.shapes)
    assert not [text for text in messages if "PERSISTENT COMPILATION CACHE MISS" in text.upper()]
