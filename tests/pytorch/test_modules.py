"""The torch networks against the JAX ones: scores, losses, gradients, running statistics, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_world import GAP, LAST, STATIC_GRAPH, N, R, make_config, random_arrays, visible

pytest.importorskip("torch")
import torch

from geopol_tkg.checkpoint import fill, flatten
from geopol_tkg.config import ModelConfig, TrainConfig
from geopol_tkg.convert import torch_state
from geopol_tkg.data.history import build_for
from geopol_tkg.data.snapshots import Snapshots
from geopol_tkg.models import decoders as jax_decoders
from geopol_tkg.models import network as jax_network
from geopol_tkg.models.forecaster import ForecastContext, NetworkForecaster
from geopol_tkg.torch.layers import GraphConvolution, NormalisedGraphConvolution, TimeEncoding
from geopol_tkg.torch.modules import Queries, build_network, parameter_count
from geopol_tkg.training.plan import plan_steps
from geopol_tkg.training.step import make_trainer, put_step_data

VARIANTS = {
    "regcn": make_config("regcn", num_layers=1),
    "multiply": make_config(history_window=0),
    "exclude, window": make_config(history_mask_mode="exclude", kernel_width=5, num_layers=1),
    "exclude, history only": make_config(history_mask_mode="exclude", history_window=0, history_rate=1.0, num_layers=1),
    "raw only": make_config(history_rate=0.0, num_layers=1),
    "regcn, static": make_config("regcn", num_layers=1, **STATIC_GRAPH.sizes()),
    "tirgn, static": make_config(num_layers=1, static_angle=25, **STATIC_GRAPH.sizes()),
}


def torch_network(config, arrays):
    network = build_network(config)
    network.load_state_dict({name: torch.tensor(array) for name, array in torch_state(arrays).items()})
    return network


def snapshots_before(dataset, time, length):
    times = [t for t in dataset.timestamps.tolist() if t < time][-length:]
    return [torch.tensor(dataset.facts[dataset.facts[:, 3] == t, :3]).long() for t in times]


def seen_mask(pairs, found, size):
    mask = torch.zeros(len(pairs), size, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        for target in found.get(pair, ()):
            mask[row, target] = True
    return mask


def history_masks(dataset, config, time, facts):
    """Objects seen for (s, r) and relations seen for (s, o), for facts [b, 3] of both directions."""
    objects, relations = {}, {}
    for s, r, o in visible(dataset, time, config.history_window):
        objects.setdefault((s, r), set()).add(o)
        relations.setdefault((s, o), set()).add(r)
    rows = facts.tolist()
    return (
        seen_mask([(s, r) for s, r, _ in rows], objects, N),
        seen_mask([(s, o) for s, _, o in rows], relations, 2 * R),
    )


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_scores_are_those_of_jax(dataset, config):
    arrays = random_arrays(config)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: jax_network.build_network(config, key=jax.random.key(0))))
    context = ForecastContext.build(dataset, build_for(dataset, window=config.history_window), config)
    forecaster = NetworkForecaster(graphdef, fill(state, arrays), config=config, context=context, name="jax")
    network = torch_network(config, arrays).eval()
    queries = np.stack(np.meshgrid(np.arange(N), np.arange(2 * R), [0]), axis=-1).reshape(-1, 3)
    for time in (0, 1, 2, 5, GAP, LAST, LAST + 1, LAST + 4):  # none, one, two and three snapshots to evolve
        seen, _ = history_masks(dataset, config, time, queries)
        asked = Queries(*torch.tensor(queries[:, :2]).unbind(1), time, seen)
        with torch.no_grad():
            found = network(snapshots_before(dataset, time, config.history_length), asked)
        expected = np.asarray(forecaster.at(time)(queries[:, 0], queries[:, 1]))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(found.exp().sum(1), 1, atol=1e-5)


def jax_step(dataset, config, arrays, time):
    """Loss, gradients, and statistics after a training step without dropout; the step's facts [b, 3]."""
    history = build_for(dataset, window=config.history_window)
    snapshots = Snapshots.build(dataset.facts, num_relations=R, model_type=config.model_type)
    length = config.history_length
    sizes = {"history_length": length, "batch_size": 0, "seed": 0}
    plan = plan_steps(dataset.facts_of("train"), snapshots=snapshots, history=history, **sizes)
    trainer, start = make_trainer(config, TrainConfig(), compute_dtype=jnp.float32, remat=False)
    known = flatten(start.parameters).keys()
    parameters = fill(start.parameters, {name: a for name, a in arrays.items() if name in known})
    statistics = fill(start.statistics, {name: a for name, a in arrays.items() if name not in known})
    index = plan.times.tolist().index(time)
    gradient = jax.jit(jax.value_and_grad(trainer.loss, has_aux=True), static_argnums=5)
    data, shape = put_step_data(plan, snapshots, history), plan.shapes[plan.shape_of[index]]
    key = jax.random.key(0)
    (loss, (_, after)), gradients = gradient(parameters, statistics, data, jnp.int32(index), key, shape)
    rows = slice(plan.starts[index], plan.starts[index] + plan.counts[index])
    return float(loss), flatten(gradients), flatten(after), plan.queries[rows]


def torch_loss(network, dataset, config, time, facts):
    seen_objects, seen_relations = history_masks(dataset, config, time, facts)
    subject, relation, object_ = torch.tensor(facts).long().unbind(1)
    evolved = network.encoder(snapshots_before(dataset, time, config.history_length))
    objects = network.entity_log_probabilities(evolved, Queries(subject, relation, time, seen_objects))
    relations = network.relation_log_probabilities(evolved, Queries(subject, object_, time, seen_relations))
    nll, share = torch.nn.functional.nll_loss, TrainConfig.task_weight
    loss = share * nll(objects, object_) + (1 - share) * nll(relations, relation)
    return loss + TrainConfig.static_weight * evolved.drift


@pytest.mark.parametrize(
    ("variant", "time"),
    [
        ("regcn", 2),
        pytest.param("exclude, window", 5, marks=pytest.mark.slow),
        pytest.param("tirgn, static", 2, marks=pytest.mark.slow),
        pytest.param("multiply", 2, marks=pytest.mark.slow),
        pytest.param("regcn, static", 5, marks=pytest.mark.slow),
    ],
)
def test_training_step_is_that_of_jax(dataset, variant, time):
    config = ModelConfig(**{**VARIANTS[variant].__dict__, "dropout": 0.0})
    arrays = random_arrays(config, seed=1)
    expected, gradients, statistics, facts = jax_step(dataset, config, arrays, time)
    network = torch_network(config, arrays).train()
    loss = torch_loss(network, dataset, config, time, facts)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    parameters, state = dict(network.named_parameters()), network.state_dict()
    assert len(parameters) == len(gradients)
    for name, array in torch_state(gradients).items():
        found = torch.zeros(()) if parameters[name].grad is None else parameters[name].grad
        np.testing.assert_allclose(found, array, rtol=1e-3, atol=2e-5, err_msg=name)
    for name, array in torch_state(statistics).items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(state[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("model_type", "count"), [("regcn", 6_863_308), ("tirgn", 11_068_446)])
def test_sizes_are_the_published_ones(model_type, count):
    static = {"num_words": 3499, "num_static_edges": 11_349}
    config = ModelConfig(model_type=model_type, num_entities=7128, num_relations=230, **static)
    with torch.device("meta"):
        assert parameter_count(build_network(config)) == count
    shapes = nnx.eval_shape(lambda: jax_network.build_network(config, key=jax.random.key(0)))
    assert jax_network.parameter_count(shapes) == count


@pytest.mark.parametrize("time", [35_000, 2**24 + 11])
def test_time_vectors_of_a_large_index_are_those_of_jax(time):
    """A year of 15-minute steps: there the sine shows how its argument was rounded; and beyond the float32 integers."""
    encoding = jax_decoders.TimeEncoding(200, key=jax.random.key(0))
    graphdef, state = nnx.split(encoding)
    fused = {"xla_backend_optimization_level": 3}  # a product and a sum are rounded once, as for users
    encode = jax.jit(lambda state, time: nnx.merge(graphdef, state)(time, 3), compiler_options=fused)
    expected = encode(state, jnp.int32(time))
    found = TimeEncoding(200)
    found.load_state_dict({name: torch.tensor(np.array(array)) for name, array in flatten(state).items()})
    for mine, theirs in zip(found(time, 3), expected, strict=True):
        np.testing.assert_allclose(mine.detach(), theirs, rtol=1e-6, atol=1e-6)


def test_tirgn_refuses_queries_without_a_mask():
    network = build_network(make_config()).eval()
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="history mask"):
        network([], Queries(one, one, 0))


@pytest.mark.parametrize("layer_type", [GraphConvolution, NormalisedGraphConvolution])
def test_a_graph_convolution_computes_under_autocast(layer_type):
    torch.manual_seed(0)
    layer, edges = layer_type(8), torch.tensor([[0, 1, 2], [2, 3, 0]])
    x, relations = torch.randn(5, 8), torch.randn(4, 8)
    wanted = layer(edges, x, relations)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(edges, x, relations)
    assert (found.dtype, torch.equal(found, wanted)) == (torch.float32, False)
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)
