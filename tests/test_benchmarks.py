"""The benchmarks run, on the smallest settings, and count what they say they count."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_helpers import even_events
from small_world import N, R, make_dataset, visible

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ("--embedding-dim", "8", "--history-length", "2", "--set", "num_layers=1", "--device", "cpu")


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def run(name, *arguments, cwd, optimise=False):
    """The JSON that a benchmark prints."""
    fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not optimise)), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, BENCHMARKS / f"{name}.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | fast, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["benchmark"] == name
    assert found["machine"]["cores"] >= 1
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a dataset lies, made by the benchmark of ingest."""
    path = tmp_path_factory.mktemp("benchmarks")
    pq.write_table(even_events(), path / "events.parquet")
    found = run("ingest", "events.parquet", "--granularity", "1h", "--out", "data", "--repeats", "1", cwd=path)
    assert found["result"]["timestamps"] == 20
    assert 0 < found["seconds"] == found["all_seconds"][0]
    assert found["peak_rss_bytes"] > 2**25
    return path


@pytest.mark.slow
def test_vocab(folder):
    found = run("vocab", "data", "--repeats", "2", cwd=folder)
    assert found["result"]["bytes"] == (folder / "data/history.npz").stat().st_size
    assert 0 < found["result"]["seconds"] < found["seconds"]


def test_products_are_counted_as_often_as_they_run(benchmark_modules):
    from counting import matmul_flops

    def program(x, w, kernel):
        first = jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x, length=5)[0]  # 5 of 2·3·4·4
        second = jax.jit(lambda y: jax.lax.cond(y[0, 0] > 0, lambda: y @ w, lambda: y))(first)  # one more
        convolved = jax.lax.conv_general_dilated(kernel, kernel, (1, 1), "VALID")  # one output of 2·2·6 terms
        return second, jnp.einsum("ij,kj->ik", first, second), convolved  # 2·3·3·4

    jaxpr = jax.make_jaxpr(program)(jnp.ones((3, 4)), jnp.ones((4, 4)), jnp.ones((1, 6, 2, 2)))
    assert matmul_flops(jaxpr) == 6 * 2 * 3 * 4 * 4 + 2 * 3 * 3 * 4 + 2 * 24


def test_a_loop_of_unknown_length_is_not_counted_as_one(benchmark_modules):
    from counting import matmul_flops

    def loop(x):
        return jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x)

    def program(x):
        with jax.named_scope("first"):
            x = jax.jit(loop)(x)
        return loop(x)

    jaxpr = jax.make_jaxpr(program)(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="how often"):
        matmul_flops(jaxpr)
    assert matmul_flops(jaxpr, trip_count=lambda scopes: 3 if "first" in scopes else 5) == (3 + 5) * 2 * 2 * 2 * 2


def test_operations_with_a_product_are_found_inside_fusions(benchmark_modules):
    from counting import profile, time_shares

    x = jnp.ones((256, 256))

    def share(function):
        compiled = jax.jit(function).lower(x).compile()
        operations = profile(compiled, lambda: jax.block_until_ready(compiled(x)))
        return time_shares(operations, lambda operation: str(operation.has_product)).get("True", 0)

    assert share(lambda x: jnp.sin(x) + 1) == 0
    assert 0.1 < share(lambda x: jax.lax.scan(lambda y, _: (y @ x, None), x, length=20)[0]) <= 1


def test_the_yardstick_sees_the_same_history(benchmark_modules):
    pytest.importorskip("torch")
    from yardstick import DenseHistory

    dataset, time = make_dataset(), 5
    facts = dataset.facts[dataset.facts[:, 3] < time]
    queries = np.stack(np.meshgrid(np.arange(N), np.arange(2 * R), np.arange(N)), axis=-1).reshape(-1, 3)
    objects, relations = DenseHistory(facts, num_entities=N, num_relations=R).masks(queries)
    seen = visible(dataset, time, 0)
    for row, (s, r, o) in enumerate(queries.tolist()):
        assert objects[row, o] == relations[row, r] == ((s, r, o) in seen)


def test_each_shape_has_its_share_of_the_timed_steps(benchmark_modules):
    from train_step import choose_steps

    shape_of = np.array([0] * 30 + [1] * 9 + [2])
    chosen = choose_steps(shape_of, 8, 0)
    assert np.bincount(shape_of[chosen]).tolist() == [6, 2, 1]
    assert len(set(chosen)) == len(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["regcn", "tirgn"])
def test_train_step(folder, model):
    pytest.importorskip("torch")
    found = run("train_step", "--dataset", "data", "--model", model, "--steps", "2", *TINY, cwd=folder)
    assert found["check"]["relative_difference"] < 1e-4
    assert np.allclose(found["check"]["jax"], found["check"]["torch"], rtol=1e-3)
    assert found["ratio"]["total"] == found["torch"]["total_seconds"] / found["jax"]["total_seconds"]
    for side in ("jax", "torch"):
        assert 0 < found[side]["matmul_time_share"] < 1
        assert 0 < found[side]["fraction_of_rate"] < 1
        assert found[side]["epoch_seconds"] > found[side]["total_seconds"] > 0
    shares = found["jax"]["part_time_shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.keys() > {"evolution, products", "decoders, products", "scores, products", "optimiser, other"}


@pytest.mark.slow
def test_train_epoch(folder):
    found = run("train_epoch", "--dataset", "data", "--model", "regcn", *TINY, cwd=folder)
    first, second = found["all_epoch_seconds"]
    assert first > second == found["epoch_seconds"] > 0
    assert found["losses"][1] < found["losses"][0]
    assert 0 < found["fraction_of_rate"] < 1


@pytest.mark.slow
def test_prior_cost(folder):
    found = run("prior_cost", "--dataset", "data", "--model", "regcn", "--steps", "2", *TINY, cwd=folder)
    assert found["ratio"]["total"] == found["with"]["total_seconds"] / found["without"]["total_seconds"]
    pairs = zip(found["with"]["programs"], found["without"]["programs"], strict=True)
    for beside, plain in pairs:
        assert beside["memory"]["arguments"] > plain["memory"]["arguments"]
        assert beside["xla_flops"] > plain["xla_flops"]


@pytest.mark.slow
def test_evaluate(folder):
    found = run("evaluate", "--dataset", "data", "--model", "regcn", "--repeats", "1", *TINY, cwd=folder)
    assert found["first_seconds"] > found["seconds"] > 0
    assert found["command"]["warm"]["seconds"] > found["seconds"]
    assert 0 < found["mrr"] < 1
    assert found["matmul_flops"] > 0


@pytest.mark.slow
def test_memory(folder):
    before = sorted(folder.rglob("*"))
    sizes = ("--facts", "20", "--entities", "50", "100", "--history-lengths", "2", "--execute")
    small, large = run("memory", *sizes, "--embedding-dim", "8", "--device", "cpu", cwd=folder)["points"]
    assert (small["entities"], large["entities"]) == (50, 100)
    assert small["arguments"] < large["arguments"]
    assert small["peak"] >= small["temporary"] + small["outputs"]
    assert small["peak_rss_bytes"] > small["peak"]
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "limit"),
    [pytest.param(75_000, 4e9, id="GDELT in days"), pytest.param(3_500, 2e9, id="GDELT in hours")],
)
def test_tirgn_stays_within_its_memory(tmp_path, facts, limit):
    sizes = ("--facts", facts, "--entities", 6_000, "--history-lengths", 7)
    options = ("--model", "tirgn", "--embedding-dim", 200, "--batch-size", 0, "--device", "cpu")
    (point,) = run("memory", *sizes, *options, cwd=tmp_path, optimise=True)["points"]
    assert point["queries"] >= 2 * 0.99 * facts
    assert point["arguments"] < point["peak"] < limit


@pytest.mark.slow
def test_startup(tmp_path):
    found = run("startup", "--repeats", "1", "--device", "cpu", "--embedding-dim", "8", cwd=tmp_path)
    assert found["cold"]["seconds"] > found["help"]["seconds"] > 0
    assert found["warm"]["seconds"] > found["help"]["seconds"]
    assert not list(tmp_path.iterdir())
