"""A trained network on other datasets: newer facts, other labels in another order, a later origin."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from cli_helpers import call, even_events
from pyarrow import parquet
from small_world import N, R, make_checkpoint, make_config, make_dataset, random_arrays

from geopol_tkg.checkpoint import save_checkpoint
from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.errors import CheckpointError, DataError
from geopol_tkg.evaluation.evaluator import evaluate
from geopol_tkg.forecasts import AlignedForecaster, load_model, load_named, look_up, member_names, predict
from geopol_tkg.models.base import Block
from geopol_tkg.models.ensemble import EnsembleForecaster, Member

DAY = 86400
SHIFT = 3  # time indices that the other dataset begins later


def relabelled(dataset, *, extra_entities=("ATLANTIS", "ZEMBLA"), extra_relations=("999",), extra_facts=()):
    """The same facts from time SHIFT on, in other ids and on another origin, and facts with unknown labels."""
    entities = (
        (extra_entities[0], *dataset.entities[::-1], *extra_entities[1:]) if extra_entities else dataset.entities[::-1]
    )
    relations = (*extra_relations, *dataset.relations[::-1])
    ids = {label: i for i, label in enumerate(entities)}
    codes = {label: i for i, label in enumerate(relations)}
    kept = dataset.facts[dataset.facts[:, 3] >= SHIFT]
    rows = [
        (ids[dataset.entities[s]], codes[dataset.relations[r]], ids[dataset.entities[o]], t - SHIFT)
        for s, r, o, t in kept
    ]
    rows += [(ids[s], codes[r], ids[o], t - SHIFT) for s, r, o, t in extra_facts]
    facts = np.array(sorted(rows, key=lambda row: (row[3], *row)), np.int32)
    split = Split(dataset.split.valid_start - SHIFT, dataset.split.test_start - SHIFT)
    axis = replace(dataset.time_axis, origin=dataset.time_axis.origin + SHIFT * DAY)
    return Dataset(entities, relations, facts, split, axis, dataset.entity_kind, dataset.relation_kind)


@pytest.fixture(scope="module", params=["tirgn", "regcn"])
def stem(request, tmp_path_factory) -> Path:
    """A checkpoint whose window and history reach back to SHIFT at most, on the dataset it was trained on."""
    folder = tmp_path_factory.mktemp("model")
    make_dataset().save(folder / "data")
    config = make_config(request.param)
    checkpoint = make_checkpoint(config, Dataset.load(folder / "data"), random_arrays(config, seed=1))
    save_checkpoint(folder / "x_best", replace(checkpoint, metrics={}))
    return folder / "x_best"


UNKNOWN = (
    ("ATLANTIS", "042", "COUNTRY A", 9),
    ("COUNTRY A", "999", "COUNTRY B", 9),
    ("COUNTRY A", "042", "ATLANTIS", 10),
)


def test_known_queries_score_exactly_as_with_the_original_ids(stem):
    own, data = load_model(stem), relabelled(make_dataset(), extra_facts=UNKNOWN)
    other = load_model(stem, data)
    subjects, relations = (array.ravel() for array in np.meshgrid(np.arange(N), np.arange(2 * R)))
    wanted = np.asarray(own.forecaster().at(9)(subjects, relations))
    entity = np.array([data.entity_to_id[label] for label in own.dataset.entities])
    relation = np.array([data.relation_to_id[label] for label in own.dataset.relations])
    relation = np.concatenate([relation, relation + data.num_relations])
    found = other.forecaster().at(9 - SHIFT)(entity[subjects], relation[relations])
    np.testing.assert_array_equal(found[:, entity], wanted)
    unknown = [data.entity_to_id[label] for label in ("ATLANTIS", "ZEMBLA")]
    assert (found[:, unknown] == -np.inf).all()


def test_unknown_labels_say_nothing_and_are_counted(stem):
    data = relabelled(make_dataset(), extra_facts=UNKNOWN)
    model = load_model(stem, data)
    assert (model.alignment.num_unknown_entities, model.alignment.num_unknown_relations) == (2, 1)
    queries = [("ATLANTIS", "042"), ("COUNTRY A", "999")]
    subjects = np.array([data.entity_to_id[s] for s, _ in queries])
    relations = np.array([data.relation_to_id[r] for _, r in queries])
    inverse = relations + data.num_relations
    assert (model.forecaster().at(6)(np.tile(subjects, 2), np.concatenate([relations, inverse])) == 0).all()
    ranks = evaluate(model.forecaster(), data, known_entities=model.known_entities)
    assert ranks.unseen_entity.sum() == 4
    assert np.isfinite(ranks.rank).all()
    assert set(ranks.num_candidates) <= set(range(N + 3))
    own = evaluate(load_model(stem).forecaster(), make_dataset())
    strangers = ranks.unseen_entity | np.isin(ranks.relation % data.num_relations, data.relation_to_id["999"])
    assert len(own.rank) == (~strangers).sum()


def test_without_unknown_labels_the_metrics_are_the_same(stem):
    data = relabelled(make_dataset(), extra_entities=(), extra_relations=())
    model = load_model(stem, data)
    found = evaluate(model.forecaster(), data, known_entities=model.known_entities).metrics()
    own = load_model(stem)
    wanted = evaluate(own.forecaster(), own.dataset, known_entities=own.known_entities).metrics()
    for part in ("object", "subject"):
        assert found[part] == pytest.approx(wanted[part], abs=1e-12)
    horizon = data.split.test_start
    multi = evaluate(model.forecaster(horizon=horizon), data)
    own_multi = evaluate(own.forecaster(horizon=horizon + SHIFT), own.dataset)
    assert multi.metrics()["mrr"] == pytest.approx(own_multi.metrics()["mrr"], abs=1e-12)


def test_probabilities_of_a_dataset_without_some_entities_of_the_model(stem):
    """Only queries whose subject or relation is unknown have none; the others' are those among its entities."""
    whole = make_dataset()
    gone = int(whole.facts[-1, 0])
    kept = whole.facts[(whole.facts[:, [0, 2]] != gone).all(axis=1)]
    entities = tuple(label for i, label in enumerate(whole.entities) if i != gone)
    kept[:, [0, 2]] -= kept[:, [0, 2]] > gone
    model = load_model(stem, replace(whole, entities=entities, facts=kept))
    ranks = evaluate(model.forecaster(), model.dataset, temperature=2.0)
    assert ranks.probabilities.is_known.all()
    scores = (
        np.concatenate(
            [
                model.forecaster().at(int(t))(ranks.subject[ranks.time == t], ranks.relation[ranks.time == t])
                for t in np.unique(ranks.time)
            ]
        )
        / 2.0
    )
    wanted = np.exp(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))
    order = np.argsort(ranks.time, kind="stable")
    found = ranks.probabilities.of_targets()[order]
    np.testing.assert_allclose(found, wanted[np.arange(len(wanted)), ranks.object[order]], rtol=1e-4)


def test_a_dataset_without_known_labels_is_refused(stem):
    strangers = Dataset(("X", "Y"), ("042",), np.array([(0, 0, 1, 0)], np.int32), Split(1, 2), TimeAxis(0, DAY, "1d"))
    with pytest.raises(DataError, match="no fact among labels that the model knows"):
        load_model(stem, strangers)


@pytest.mark.parametrize("direction", ["object", "subject"])
def test_probabilities_sum_to_one(stem, direction):
    for data in (None, relabelled(make_dataset(), extra_facts=UNKNOWN)):
        found = predict(load_model(stem, data), "COUNTRY A", "042", direction=direction, top=100)["predictions"]
        assert len(found) == N
        assert sum(row["probability"] for row in found) == pytest.approx(1, abs=1e-5)
        assert sorted((row["probability"] for row in found), reverse=True) == [row["probability"] for row in found]


def test_a_temperature_flattens_probabilities_and_keeps_their_order(stem, tmp_path):
    plain = predict(load_model(stem), "COUNTRY A", "042", top=N)["predictions"]
    save_checkpoint(tmp_path / "x", replace(load_model(stem).checkpoint, temperature={"value": 2.0}))
    found = predict(load_model(tmp_path / "x"), "COUNTRY A", "042", top=N)["predictions"]
    assert [row["object"] for row in found] == [row["object"] for row in plain]
    roots = np.sqrt([row["probability"] for row in plain])
    np.testing.assert_allclose([row["probability"] for row in found], roots / roots.sum(), rtol=1e-6)


@pytest.fixture
def other_member(stem):
    """A checkpoint beside the other, of another network, read with a temperature."""
    checkpoint = load_model(stem).checkpoint
    config = make_config("regcn", embedding_dim=6)
    arrays = random_arrays(config, seed=2)
    path = stem.with_name("y")
    save_checkpoint(path, replace(checkpoint, config=config, arrays=arrays, temperature={"value": 1.7}))
    return path


@pytest.mark.parametrize("newer", [False, True])
def test_an_ensemble_is_the_mean_of_its_members_probabilities(stem, other_member, newer):
    def asked(name):
        data = relabelled(make_dataset(), extra_facts=UNKNOWN) if newer else None
        found = predict(load_named(str(name), data), "COUNTRY A", "042", top=100)["predictions"]
        return {row["object"]: row["probability"] for row in found}

    members = [asked(stem), asked(other_member)]
    mixed = asked(f"{stem}+{other_member}")
    assert list(mixed) == sorted(mixed, key=mixed.get, reverse=True)
    for label, probability in mixed.items():
        assert probability == pytest.approx((members[0][label] + members[1][label]) / 2, abs=1e-6)


def test_an_ensemble_is_evaluated_on_its_own_dataset_and_on_another(stem, other_member):
    name = f"{stem}+{other_member}"
    own = load_named(name)
    assert own.name == "x_best+y"
    whole = evaluate(own.forecaster(), own.dataset, temperature=own.temperature)
    other = load_named(name, relabelled(make_dataset()))
    np.testing.assert_allclose(sorted(evaluate(other.forecaster(), other.dataset).rank), sorted(whole.rank))
    np.testing.assert_allclose(whole.probabilities.of_targets(), np.exp(whole.score), rtol=1e-5)
    assert own.known_entities.all()


class Recorder:
    """Scores all candidates alike, and keeps what it is told to expect and what it is asked."""

    name, horizon = "recorder", None

    def __init__(self):
        self.expected, self.asked = [], []

    def expect(self, blocks):
        self.expected += blocks

    def at(self, time):
        def score(subjects, relations):
            self.asked.append(Block(time, subjects, relations))
            return jnp.zeros((len(subjects), N))

        return score


def test_an_evaluation_tells_members_what_they_will_be_asked_in_their_own_ids(stem):
    member = Recorder()
    model = load_model(stem, relabelled(make_dataset(), extra_facts=UNKNOWN))
    ensemble = EnsembleForecaster([Member(member, 1.0)], name="alone")
    evaluate(AlignedForecaster(ensemble, model.alignment), model.dataset, block_size=7)
    assert len(member.asked) > 3
    for expected, asked in zip(member.expected, member.asked, strict=True):
        assert expected.time == asked.time
        np.testing.assert_array_equal(expected.subjects, asked.subjects)
        np.testing.assert_array_equal(expected.relations, asked.relations)


def test_members_of_an_ensemble_are_of_one_dataset(stem, tmp_path):
    checkpoint = load_model(stem).checkpoint
    dataset = {**checkpoint.dataset, "content_hash": "another"}
    save_checkpoint(tmp_path / "z", replace(checkpoint, dataset=dataset))
    with pytest.raises(CheckpointError, match="trained on another dataset than"):
        load_named(f"{stem}+{tmp_path / 'z'}", make_dataset())


def test_a_plus_in_a_name_is_a_plus(stem):
    path = stem.with_name("a+b")
    save_checkpoint(path, load_model(stem).checkpoint)
    assert member_names(str(path)) == [str(path)]
    assert load_named(str(path)).name == "a+b"
    assert member_names("a+") == ["a+"]
    assert member_names("a+b+c") == ["a", "b", "c"]


def test_by_default_the_step_after_the_last_is_asked(stem):
    assert predict(load_model(stem), "COUNTRY A", "042")["time"] == "1970-01-12T00:00:00Z"
    newer = relabelled(make_dataset(), extra_facts=(("ATLANTIS", "999", "ZEMBLA", 20),))
    assert predict(load_model(stem, newer), "COUNTRY A", "042")["time"] == "1970-01-22T00:00:00Z"


@pytest.mark.parametrize(("at", "steps"), [(None, 1), ("1970-01-09", 1), ("1970-03-12", 60)])
def test_how_far_ahead_is_told(stem, at, steps):
    assert predict(load_model(stem), "COUNTRY A", "042", at=at)["steps_ahead"] == steps


def test_a_past_time_sees_earlier_facts_alone(stem, tmp_path):
    dataset = make_dataset()
    time = 8
    changed = dataset.facts.copy()
    later = changed[:, 3] >= time
    changed[later] = changed[later][:, [2, 1, 0, 3]]
    other = replace(dataset, facts=np.unique(changed[:, [3, 0, 1, 2]], axis=0)[:, [1, 2, 3, 0]])
    assert other.content_hash != dataset.content_hash
    at = dataset.time_axis.label(time)
    answers = [predict(load_model(stem, data), "COUNTRY B", "112", at=at, top=N) for data in (dataset, other)]
    assert answers[0] == answers[1]
    for row in answers[0]["predictions"]:
        assert (row["last_seen"] is not None) == row["seen_before"]
        assert row["last_seen"] is None or row["last_seen"] < at


def test_seen_before_and_last_seen_by_a_loop(stem):
    dataset = make_dataset()
    found = predict(load_model(stem), "COUNTRY B", "112", direction="subject", at="1970-01-09", top=N)
    for row in found["predictions"]:
        query = dataset.entity_to_id[row["subject"]], 2, 1
        times = [t for s, r, o, t in dataset.facts.tolist() if (s, r, o) == query and t < 8]
        assert row["last_seen"] == (dataset.time_axis.label(max(times)) if times else None)


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("chyna", "; did you mean CHINA?"),
        ("ira", "; did you mean IRAN, IRANIAN, IRAQ?"),
        ("barack obama", "; did you mean Barack Obama?"),
        ("citi", "; did you mean Citizen (India)?"),
        ("@", ""),
        ("", ""),
    ],
)
def test_suggestions(label, hint):
    with pytest.raises(DataError) as error:
        look_up(
            label, {"IRAN": 0, "IRANIAN": 1, "IRAQ": 2, "CHINA": 3, "Barack Obama": 4, "Citizen (India)": 5}, "entity"
        )
    assert str(error.value) == f"entity {label!r} is unknown to the model{hint}"


def test_eval_and_predict_with_newer_data(world):
    parquet.write_table(even_events(first_day=20171102, num_entities=10, seed=4), "newer.parquet")
    assert call("ingest", "newer.parquet", "--out", "newer", "--granularity", "1h").code == 0
    done = call("eval", "--data", "newer", "--json")
    content = done.json()
    assert (content["unknown_entities"], content["overlaps_training"]) == (2, False)
    assert "2 entities and 0 relations of the dataset are unknown to tirgn_best" in done.err
    assert content["strata"]["unseen_entity"]["num_queries"] > 0
    assert content["dataset"] == json.loads(Path("newer/dataset.json").read_text())["content_hash"]
    assert call("predict", "ENTITY 1", "042", "--data", "newer", "--json").json()["time"] == "2017-11-02T20:00:00Z"
    assert call("predict", "ENTITY 9", "042", "--data", "newer").code == 1
    rows = call("compare", "models/tkg/tirgn_best", "recurrency:0.02,0.999", "--data", "newer", "--json")
    assert json.loads(rows.out)["num_queries"] == content["num_queries"]
