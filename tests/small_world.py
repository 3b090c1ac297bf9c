"""A small world for the tests: a random dataset, networks with random weights and statistics."""

import jax
import numpy as np
from flax import nnx

from geopol_tkg.checkpoint import Checkpoint, describe_dataset, flatten
from geopol_tkg.config import ModelConfig
from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.static_graph import StaticGraph
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.models.network import build_network
from geopol_tkg.models.static_graph import set_static_graph

N, R, LAST = 12, 4, 10
GAP = 6  # a time index without facts


def make_dataset(seed=0, *, size=120):
    """Ten timestamps, a gap among them; entity 11 and relation 3 have few facts."""
    rng = np.random.default_rng(seed)
    times = np.delete(np.arange(LAST + 1), GAP)
    rows = np.stack(
        [
            rng.choice(times, size),
            rng.integers(0, N - 1, size),
            rng.integers(0, R - 1, size),
            rng.integers(0, N - 1, size),
        ],
        axis=1,
    )
    rows = np.concatenate([rows, [[2, 11, 3, 0], [LAST, 1, 3, 11]]])
    facts = np.unique(rows.astype(np.int32), axis=0)[:, [1, 2, 3, 0]]
    entities = tuple(f"COUNTRY {letter}" for letter in "ABCDEFGHIJKL")
    return Dataset(entities, ("010", "042", "112", "190"), facts, Split(7, 9), TimeAxis(0, 86400, "1d"))


def make_config(model_type="tirgn", **changes):
    defaults = {"embedding_dim": 8, "num_channels": 5, "history_length": 3, "history_window": 4}
    return ModelConfig(model_type=model_type, num_entities=N, num_relations=R, **defaults | changes)


STATIC_GRAPH = StaticGraph.from_labels(["POLICE (A)", "A", "POLICE (B)", "B", *(f"ROLE ({i % 3})" for i in range(8))])


def random_arrays(config, *, seed=0):
    """A network's arrays, all away from their initial values, variances positive."""
    network = build_network(config, key=jax.random.key(seed))
    set_static_graph(network, STATIC_GRAPH.edges)
    _, state = nnx.split(network)
    rng = np.random.default_rng(seed)

    def moved(name, array):
        if array.dtype != np.float32:
            return array
        noise = rng.normal(0, 0.2, array.shape)
        return (array * np.exp(noise) if name.endswith("/var") else array + noise).astype(np.float32)

    return {name: moved(name, array) for name, array in flatten(state).items()}


def make_checkpoint(config, dataset, arrays):
    return Checkpoint(
        config=config,
        settings={},
        epoch=3,
        metrics={"train_loss": np.float32(1.5), "valid": {"mrr": 0.25, "strata": [1, None]}},
        entity_to_id=dataset.entity_to_id,
        relation_to_id=dataset.relation_to_id,
        dataset=describe_dataset(dataset),
        arrays=arrays,
        trained_entities=np.ones(N, bool),
    )


def visible(dataset, time, window):
    """Triples of both directions that a query of a time has seen, by a loop."""
    start = time - window if window else 0
    seen = {(s, r, o) for s, r, o, t in dataset.facts.tolist() if start <= t < time}
    return seen | {(o, r + R, s) for s, r, o in seen}
