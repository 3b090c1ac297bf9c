"""The protocol: filters, strata, directions and block sizes, against a naive evaluation."""

import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import DataError, GeopolTkgError
from geopol_tkg.evaluation.evaluator import Interrupted, default_block_size, evaluate
from geopol_tkg.models.recurrency import Recurrency

N, R = 5, 2


def make_dataset(rows, *, valid_start=3, test_start=4, n=N, r=R):
    facts = np.array(sorted(set(rows), key=lambda row: (row[3], *row)), np.int32).reshape(-1, 4)
    names = [tuple(f"{letter}{i}" for i in range(size)) for letter, size in (("e", n), ("r", r))]
    return Dataset(*names, facts, Split(valid_start, test_start), TimeAxis(0, 1, None))


def table_forecaster(seed=0, *, wrap=np.asarray, horizon=None, values=4, n=N, r=R):
    """Scores looked up by query and time, with many ties."""
    table = np.random.default_rng(seed).integers(0, values, (8, n, 2 * r, n)).astype(np.float32)
    return SimpleNamespace(
        name="table",
        horizon=horizon,
        table=table,
        at=lambda time: lambda subjects, relations: wrap(table[time % 8, subjects, relations]),
    )


def naive_rows(forecaster, dataset, split, filter):
    """One (s, r, o, t, rank, candidates) per query, in loops."""
    both = [(s, r, o, t) for s, r, o, t in dataset.facts.tolist()]
    both += [(o, r + R, s, t) for s, r, o, t in both]
    start, end = dataset.split.bounds(split)
    for time in dataset.timestamps:
        for s, r, o, t in [row for row in both if row[3] == time and start <= time < end]:
            others = {b[2] for b in both if b[:2] == (s, r) and (filter == "static" or b[3] == t)} - {o}
            scores = forecaster.table[t % 8, s, r]
            candidates = [e for e in range(N) if e == o or filter == "raw" or e not in others]
            greater = sum(scores[e] > scores[o] for e in candidates)
            equal = sum(scores[e] == scores[o] for e in candidates) - 1
            yield s, r, o, t, 1 + greater + equal / 2, len(candidates)


facts_strategy = st.lists(
    st.tuples(st.integers(0, N - 1), st.integers(0, R - 1), st.integers(0, N - 1), st.integers(0, 6)),
    max_size=40,
).map(lambda rows: [*rows, (0, 0, 1, 5), (2, 1, 3, 6)])


@settings(deadline=None, max_examples=40)
@given(facts_strategy, st.sampled_from(["time", "static", "raw"]), st.sampled_from([1, 3, 64]))
def test_ranks_are_those_of_a_naive_evaluation(rows, filter, block_size):
    dataset, forecaster = make_dataset(rows), table_forecaster()
    found = evaluate(forecaster, dataset, filter=filter, block_size=block_size)
    columns = found.subject, found.relation, found.object, found.time, found.rank, found.num_candidates
    assert list(zip(*columns, strict=True)) == list(naive_rows(forecaster, dataset, "test", filter))


@pytest.mark.parametrize("filter", ["time", "static", "raw"])
@pytest.mark.parametrize("block_size", [1, 8, 64])
def test_jax_scores_get_the_same_ranks(filter, block_size):
    rng = np.random.default_rng(3)
    n = 40  # as many answers as one block has no room for
    dataset = make_dataset([*map(tuple, rng.integers(0, [3, R, n, 7], (900, 4)).tolist())], n=n)
    on_host = evaluate(table_forecaster(n=n), dataset, filter=filter, block_size=block_size)
    on_device = evaluate(table_forecaster(n=n, wrap=jnp.asarray), dataset, filter=filter, block_size=block_size)
    for name in ("rank", "score", "num_candidates"):
        np.testing.assert_array_equal(getattr(on_host, name), getattr(on_device, name))


def test_filters_golden():
    """(0, 0, ?) at time 4 has answers 1 and 2; 3 was an answer before. Scores fall with the entity id."""
    dataset = make_dataset([(0, 0, 3, 0), (0, 0, 1, 4), (0, 0, 2, 4)])
    descending = SimpleNamespace(
        name="descending", horizon=None, at=lambda _: lambda s, _: np.tile(-np.arange(5.0), (len(s), 1))
    )
    found = {name: evaluate(descending, dataset, filter=name) for name in ("raw", "time", "static")}
    objects = {name: (ranks.rank[:2].tolist(), ranks.num_candidates[:2].tolist()) for name, ranks in found.items()}
    assert objects == {
        "raw": ([2.0, 3.0], [5, 5]),
        "time": ([2.0, 2.0], [4, 4]),
        "static": ([2.0, 2.0], [3, 3]),
    }
    assert found["time"].rank[2:].tolist() == [1.0, 1.0]


def strata_dataset():
    train = [(0, 0, 1, 0), (2, 1, 3, 1)]
    return make_dataset([*train, (0, 0, 4, 3), (0, 0, 1, 4), (0, 0, 4, 4), (3, 1, 2, 4), (0, 0, 1, 5)])


def test_strata_golden():
    found = evaluate(table_forecaster(), strata_dataset())
    facts = list(zip(found.subject, found.relation, found.object, found.time, strict=True))
    assert facts[:3] == [(0, 0, 1, 4), (0, 0, 4, 4), (3, 1, 2, 4)]
    assert facts[3:6] == [(1, 2, 0, 4), (4, 2, 0, 4), (2, 3, 3, 4)]
    assert found.seen_before.tolist() == [True, True, False, True, True, False, True, True]
    assert found.unseen_entity.tolist() == [False, True, False, False, True, False, False, False]
    strata = found.metrics()["strata"]
    assert {name: part["num_queries"] for name, part in strata.items()} == {
        "seen": 6,
        "unseen": 2,
        "unseen_entity": 2,
    }


def test_horizon_hides_later_facts_from_seen_before():
    found = evaluate(table_forecaster(horizon=3), strata_dataset())
    assert found.seen_before.tolist() == [True, False, False, True, False, False, True, True]


def test_known_entities_can_be_given():
    known = np.array([True, True, False, True, True])
    found = evaluate(table_forecaster(), strata_dataset(), known_entities=known)
    assert found.unseen_entity.tolist() == [False, False, True, False, False, True, False, False]


def test_metrics_have_the_documented_form():
    found = evaluate(table_forecaster(), make_dataset([(0, 0, 1, 0), (0, 0, 1, 4), (0, 0, 1, 5)])).metrics()
    names = ["num_queries", "mrr", "hits_at_1", "hits_at_3", "hits_at_10", "mean_rank"]
    assert list(found) == [*names, "object", "subject", "strata"]
    assert [list(found[part]) for part in ("object", "subject")] == [names, names]
    assert found["strata"]["unseen"] == {"num_queries": 0, **dict.fromkeys(names[1:])}
    assert found["mrr"] == pytest.approx((found["object"]["mrr"] + found["subject"]["mrr"]) / 2)


def test_table_holds_the_facts_of_both_directions():
    table = evaluate(table_forecaster(), make_dataset([(0, 0, 1, 0), (3, 1, 2, 4)])).to_table()
    rows = table.select(["subject", "relation", "object", "time", "direction"]).to_pylist()
    fact = {"subject": 3, "relation": 1, "object": 2, "time": 4}
    assert rows == [fact | {"direction": "object"}, fact | {"direction": "subject"}]
    assert table.column_names[5:] == ["rank", "score", "num_candidates", "seen_before", "probability"]


def random_dataset(seed=0, *, n=40, size=600):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, [n, 3, n, 12], (size, 4)) // [2, 1, 1, 1]
    return make_dataset(map(tuple, rows.tolist()), valid_start=8, test_start=10, n=n, r=3)


def test_block_size_changes_nothing():
    dataset = random_dataset()
    found = [
        evaluate(Recurrency(dataset, lambdas=0.1, alphas=0.9), dataset, block_size=size).rank for size in (1, 7, 256)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_blocks_have_one_shape():
    dataset, shapes = random_dataset(), set()

    def score(subjects, relations):
        shapes.add((subjects.shape, relations.shape))
        return np.zeros((len(subjects), 40))

    evaluate(SimpleNamespace(name="flat", horizon=None, at=lambda _: score), dataset, block_size=16)
    assert shapes == {((16,), (16,))}


def test_queries_that_differ_in_their_answer_alone_are_scored_once():
    dataset, asked = make_dataset([(0, 0, 1, 0), (0, 0, 1, 5), (0, 0, 2, 5), (3, 0, 2, 5)]), []

    def score(subjects, relations):
        asked.extend(zip(subjects.tolist(), relations.tolist(), strict=True))
        return np.zeros((len(subjects), N))

    found = evaluate(SimpleNamespace(name="flat", horizon=None, at=lambda _: score), dataset, block_size=1)
    assert sorted(asked) == [(0, 0), (1, 2), (2, 2), (3, 0)]
    assert len(found.rank) == 6


def test_times_are_asked_once_ascending_and_only_of_the_split():
    dataset, asked = random_dataset(), []
    forecaster = table_forecaster(n=40, r=3)
    spy = SimpleNamespace(name="spy", horizon=None, at=lambda time: asked.append(time) or forecaster.at(time))
    evaluate(spy, dataset, split="valid")
    assert asked == [8, 9]


def test_nan_is_an_error_that_names_forecaster_and_time():
    def score(subjects, relations):
        return np.full((len(subjects), N), np.nan)

    broken = SimpleNamespace(name="broken", horizon=None, at=lambda _: score)
    with pytest.raises(GeopolTkgError, match="broken at 4: NaN"):
        evaluate(broken, strata_dataset())


def test_empty_split_is_refused():
    with pytest.raises(DataError, match="test split is empty"):
        evaluate(table_forecaster(), make_dataset([(0, 0, 1, 0)]))


def test_stop_and_progress():
    seen = []
    evaluate(table_forecaster(), strata_dataset(), progress=lambda *step: seen.append(step))
    assert seen == [(6, 8), (8, 8)]
    with pytest.raises(Interrupted):
        evaluate(table_forecaster(), strata_dataset(), should_stop=lambda: True)


def test_evaluation_imports_no_jax():
    code = "import sys, geopol_tkg.evaluation.evaluator, geopol_tkg.evaluation.compare as _, "
    code += "geopol_tkg.models.recurrency; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("num_entities", "size"), [(5, 256), (7128, 256), (500_000, 33), (10_000_000, 16)])
def test_fewer_queries_are_scored_at_once_where_entities_are_many(num_entities, size):
    assert default_block_size(num_entities) == size
