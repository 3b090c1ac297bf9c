"""Torch against JAX: over the sample's test split, over random small configurations, and what counts as a tie."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import LAST, STATIC_GRAPH, N, R, make_checkpoint, make_config, make_dataset, random_arrays

pytest.importorskip("torch")

from geopol_tkg.checkpoint import flatten
from geopol_tkg.config import SAMPLE_CONFIG, ModelConfig
from geopol_tkg.convert import convert
from geopol_tkg.data.history import build_for
from geopol_tkg.data.ingest import ingest
from geopol_tkg.evaluation.evaluator import evaluate
from geopol_tkg.models.network import build_network
from geopol_tkg.torch.parity import compare_split

VARIANTS = {
    "regcn": {"model_type": "regcn"},
    "tirgn, multiply": {"model_type": "tirgn"},
    "tirgn, exclude": {"model_type": "tirgn", "history_mask_mode": "exclude"},
}


@pytest.fixture(scope="module")
def sample():
    return ingest(["sample"], SAMPLE_CONFIG)


def fresh_arrays(config):
    """As training begins: at full size the noise of ``random_arrays`` adds up to logits in the thousands."""
    return flatten(nnx.split(build_network(config, key=jax.random.key(0)))[1])


def converted(config, dataset, path, make_arrays=random_arrays):
    history = build_for(dataset, window=config.history_window)
    checkpoint = make_checkpoint(config, dataset, make_arrays(config))
    return convert(checkpoint, dataset, history, output=path, rank=partial(evaluate, dataset=dataset))


@pytest.mark.parametrize(
    "variant", ["regcn", "tirgn, multiply", pytest.param("tirgn, exclude", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dim", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_the_sample_s_test_split(sample, tmp_path, variant, dim):
    """Scores within 1e-4 relative, ranks identical up to ties at that tolerance, MRR identical to 4 digits."""
    sizes = {"num_entities": sample.num_entities, "num_relations": sample.num_relations, "embedding_dim": dim}
    config = ModelConfig(**sizes, num_channels=50 if dim == 200 else 6, history_length=4, **VARIANTS[variant])
    make_arrays = fresh_arrays if dim == 200 else random_arrays
    full = converted(config, sample, tmp_path / "x.pt", make_arrays)["full"]
    assert full["num_queries"] == 2 * len(sample.facts_of("test")) == 736
    assert 0 < full["max_relative_difference"] < 1e-4
    assert full["beyond_ties"] == 0
    assert round(full["mrr"], 4) == round(full["mrr_jax"], 4)
    assert full["passed"]
    ranks = full["metrics"]
    assert (ranks["mrr"], ranks["num_queries"]) == (full["mrr"], 736)


configurations = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(["regcn", "tirgn"]),
        "embedding_dim": st.sampled_from([2, 6, 10]),
        "num_layers": st.integers(1, 3),
        "num_channels": st.integers(1, 4),
        "kernel_width": st.sampled_from([1, 3, 5]),
        "history_length": st.integers(1, 4),
        "history_rate": st.sampled_from([0.0, 0.3, 1.0]),
        "history_window": st.sampled_from([0, 1, 3]),
        "history_mask_mode": st.sampled_from(["multiply", "exclude"]),
        "static": st.booleans(),
    }
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(configurations, st.integers(0, 99))
def test_any_small_configuration(tmp_path_factory, changes, seed):
    static = STATIC_GRAPH.sizes() if changes.pop("static") else {}
    dataset = make_dataset(seed, size=60)
    result = converted(make_config(**changes, **static), dataset, tmp_path_factory.mktemp("any") / "x.pt")
    assert result["passed"]
    assert result["max_abs_difference"] < 1e-4
    assert result["full"]["max_relative_difference"] < 1e-4


class Fixed:
    """A forecaster of given scores for every query."""

    name, horizon = "fixed", None

    def __init__(self, scores):
        self.scores = np.asarray(scores, np.float32)

    def at(self, time):
        return lambda subjects, relations: np.tile(self.scores, (len(subjects), 1))


class Answering:
    """Stands in for a predictor: fixed answers, whatever is known."""

    def __init__(self, scores):
        self.scores, self.config, self.facts = np.asarray(scores, np.float32), make_config(), None

    time_index = property(lambda self: self.facts.time_index)

    def update(self, facts):
        self.facts = self.facts.extended(facts)

    def log_probabilities(self, subjects, relations):
        return np.tile(self.scores, (len(subjects), 1))


@pytest.mark.parametrize(
    ("moved", "beyond", "passed"),
    [(0.0, False, True), (1e-5, False, True), (3e-4, True, False), (1.0, True, False)],
)
def test_ranks_may_differ_by_near_ties_only(moved, beyond, passed):
    """Scores that are 1e-6 apart change places within the tolerance, and not when moved further."""
    dataset = make_dataset()
    scores = -1 - 1e-6 * np.arange(N)
    other = scores.copy()
    other[::2] -= moved
    rank = partial(evaluate, dataset=dataset)
    found = compare_split(Answering(other), Fixed(scores), dataset.facts, rank=rank, tolerance=1e-4)
    assert (found["rank_differences"] > 0) is (moved > 0)
    assert found["max_relative_difference"] == pytest.approx(moved, rel=0.1, abs=1e-6)
    if moved == 1e-5:
        assert found["beyond_ties"] == 0
    assert (found["max_relative_difference"] <= 1e-4) is not beyond
    far = compare_split(Answering(-scores), Fixed(1e3 * scores), dataset.facts, rank=rank, tolerance=1e-9)
    assert far["beyond_ties"] > 0
    assert not far["passed"]


def test_the_forecaster_sees_no_fact_of_the_step_or_later(pt_file, dataset):
    """Every time in order, then back: the same scores as a predictor built for that time alone."""
    from geopol_tkg.torch import TKGPredictor
    from geopol_tkg.torch.parity import Compared

    silent = SimpleNamespace(at=lambda time: lambda *queries: np.zeros((len(queries[0]), N)))
    query = np.array([0, 3]), np.array([1, 2 + R])
    walker = Compared(TKGPredictor(pt_file, device="cpu"), silent, dataset.facts)
    forward = {time: walker.at(time)(*query) for time in range(1, LAST + 2)}
    for time, scores in reversed(forward.items()):
        changed = dataset.facts.copy()
        changed[changed[:, 3] >= time, :3] = [0, 1, 2]
        alone = Compared(TKGPredictor(pt_file, device="cpu"), silent, changed)
        np.testing.assert_allclose(alone.at(time)(*query), scores, atol=1e-6)
        np.testing.assert_allclose(walker.at(time)(*query), scores, atol=1e-6)
