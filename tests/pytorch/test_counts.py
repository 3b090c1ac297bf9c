"""The counting model in torch: against JAX, against loops over the facts, from its file alone, and updated."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from small_world import GAP, LAST, N, R, make_checkpoint, make_config, make_dataset, random_arrays

pytest.importorskip("torch")
import torch
from torch.nn.functional import cross_entropy, log_softmax

from geopol_tkg.checkpoint import fill, flatten
from geopol_tkg.convert import SUFFIXES, convert, torch_state
from geopol_tkg.data.history import build_for
from geopol_tkg.errors import CheckpointError, GeopolTkgError, UsageError
from geopol_tkg.evaluation.evaluator import evaluate
from geopol_tkg.models.registry import build_context, build_forecaster, build_model
from geopol_tkg.torch import TKGPredictor
from geopol_tkg.torch.facts import KnownFacts
from geopol_tkg.torch.modules import build_network, parameter_count
from geopol_tkg.torch.past import Counts, PastCounts

CONFIG = make_config("counts", half_lives=(0.5, 3.0), num_countries=2, num_paths=3)
COUNTRIES = np.arange(N, dtype=np.int32) % 3 - 1  # -1 = none
ALL = np.stack(np.meshgrid(np.arange(N), np.arange(2 * R)), axis=-1).reshape(-1, 2).T
CUT = 5


def random_weights(seed=0):
    """All away from the zeros that training begins with."""
    rng = np.random.default_rng(seed)
    _, state = nnx.split(build_model(CONFIG, key=jax.random.key(seed)))
    weights = {name: rng.normal(0, 0.2, array.shape).astype(np.float32) for name, array in flatten(state).items()}
    return weights | {"compatriots/countries": COUNTRIES}


WEIGHTS = random_weights()


def known(facts, time):
    return KnownFacts.build(facts, num_entities=N, num_relations=R, history_length=None, time_index=time)


def counted(facts, time):
    past = known(facts[facts[:, 3] < time], time)
    return PastCounts(past, time, half_lives=CONFIG.half_lives, num_paths=CONFIG.num_paths)


@pytest.fixture(scope="module")
def dataset():
    """Several relations between two at once, entities that met themselves, and one without any facts."""
    dataset = make_dataset(1, size=400)
    facts = dataset.facts[(dataset.facts[:, [0, 2]] != 10).all(axis=1)]
    assert len(np.unique(facts[:, [0, 2, 3]], axis=0)) < 0.9 * len(facts)
    assert (facts[:, 0] == facts[:, 2]).any()
    return replace(dataset, facts=facts)


@pytest.fixture(scope="module")
def of_jax(dataset):
    """Log-probabilities of all queries of a time by the JAX model: [b, n]."""
    graphdef, state = nnx.split(build_model(CONFIG, key=jax.random.key(0)))
    context = build_context(dataset, None, CONFIG)
    forecaster = build_forecaster(graphdef, fill(state, WEIGHTS), config=CONFIG, context=context, name="counts")
    return lambda time: np.asarray(forecaster.at(time)(*ALL))


@pytest.fixture(scope="module")
def checkpoint(dataset):
    return make_checkpoint(CONFIG, dataset, WEIGHTS)


@pytest.fixture(scope="module")
def result(checkpoint, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts")
    rank = partial(evaluate, dataset=dataset)
    return convert(checkpoint, dataset, None, output=folder / "counts_trained.pt", rank=rank)


@pytest.fixture
def predictor(result):
    return TKGPredictor(result["output"], device="cpu")


@pytest.mark.parametrize("time", [0, 1, 2, 5, GAP, GAP + 1, LAST, LAST + 1, LAST + 40])
def test_scores_are_those_of_jax(dataset, of_jax, time):
    model = build_network(CONFIG)
    model.load_state_dict({name: torch.tensor(array) for name, array in torch_state(WEIGHTS).items()})
    counts = counted(dataset.facts, time).of(*ALL)
    with torch.no_grad():
        found = log_softmax(model(Counts(*map(torch.from_numpy, counts))), dim=1)
    np.testing.assert_allclose(found, of_jax(time), atol=1e-5)
    np.testing.assert_allclose(found.exp().sum(1), 1, atol=1e-5)
    assert parameter_count(model) == sum(array.size for array in WEIGHTS.values()) - N


def features(times, time):
    """By the definition: of the times at which something was true."""
    if not times:
        return [0.0] * (len(CONFIG.half_lives) + 2)
    counts = [sum(2 ** (-(time - t) / life) for t in times) for life in CONFIG.half_lives]
    return [*np.log1p([20 * count for count in [*counts, len(times)]]), np.log1p(time - max(times))]


@pytest.mark.parametrize("time", [0, 3, LAST + 1])
def test_counts_are_those_of_a_loop(dataset, time):
    both = [(s, r, o, t) for s, r, o, t in dataset.facts.tolist() if t < time]
    both += [(o, r + R, s, t) for s, r, o, t in both]

    def past(subject=None, relations=None, object_=None):
        chosen = [t for s, r, o, t in both if relations is None or r in relations]
        given = zip(both, [r in relations if relations else True for _, r, _, _ in both], strict=True)
        chosen = [t for (s, _, o, t), ok in given if ok and subject in (None, s) and object_ in (None, o)]
        return features(chosen, time)

    counts = counted(dataset.facts, time).of(*ALL)
    forward, inverse = range(R), range(R, 2 * R)
    own = [[past(None, part, o) for o in range(N)] for part in (forward, inverse)]
    expected = np.stack([np.concatenate([own[0], own[1]], axis=1), np.concatenate([own[1], own[0]], axis=1)])
    np.testing.assert_allclose(counts.entities, expected, rtol=1e-6)
    expected = [[past(None, [r], o) for o in range(N)] for r in counts.relations]
    np.testing.assert_allclose(counts.answers, expected, rtol=1e-6)
    np.testing.assert_array_equal(counts.relations[counts.relation_of], ALL[1])
    np.testing.assert_allclose(counts.rows, [past(s, [r]) for s, r in ALL.T], rtol=1e-6)
    met = {(s, o) for s, _, o, _ in both}
    expected = [(query, o) for query, s in enumerate(ALL[0]) for o in range(N) if (s, o) in met]
    assert list(zip(counts.query, counts.objects, strict=True)) == expected
    for i, (query, o) in enumerate(expected):
        s, r = ALL[:, query]
        directions = (forward, inverse) if r < R else (inverse, forward)
        row = [past(s, part, o) for part in ([r], *directions)]
        np.testing.assert_allclose(counts.meetings[i], np.concatenate(row), rtol=1e-6)
        _, last = max((t, relation) for a, relation, b, t in both if (a, b) == (s, o))
        assert counts.last_relations[i] == last


def test_every_parameter_receives_a_gradient(dataset):
    torch.manual_seed(0)
    model = build_network(CONFIG)
    model.load_state_dict({name: torch.tensor(array) for name, array in torch_state(WEIGHTS).items()})
    found = model(Counts(*map(torch.from_numpy, counted(dataset.facts, LAST + 1).of(*ALL))))
    cross_entropy(found, torch.arange(len(found)) % N).backward()
    for name, parameter in model.named_parameters():
        assert parameter.numel() == 0 or parameter.grad.abs().max() > 0, name


def test_the_conversion_agrees_with_jax(result, dataset):
    assert result["passed"]
    assert result["full"]["passed"]
    assert 0 < result["max_abs_difference"] < 1e-5
    assert result["full"]["num_queries"] == 2 * len(dataset.facts_of("test"))
    assert result["full"]["mrr"] == pytest.approx(result["full"]["mrr_jax"], abs=5e-5)


def test_a_wrong_weight_leaves_no_file(checkpoint, dataset, tmp_path, monkeypatch):
    import geopol_tkg.convert as module

    wrong = torch_state(WEIGHTS) | {"history_bias": WEIGHTS["history_bias"] + np.arange(2 * R, dtype=np.float32)}
    wrong["last_relation"] = WEIGHTS["last_relation"][::-1]
    monkeypatch.setattr(module, "torch_state", lambda arrays: wrong)
    found = convert(checkpoint, dataset, None, output=tmp_path / "x.pt")
    assert not found["passed"]
    assert list(tmp_path.iterdir()) == []


def test_the_file_holds_all_facts(result, dataset):
    content = torch.load(result["output"], weights_only=True)
    facts = content["context"]["facts"].numpy()
    assert facts.dtype == np.int32
    assert (np.diff(facts[:, 3]) >= 0).all()
    assert sorted(facts.tolist()) == sorted(dataset.facts.tolist())
    assert not {"snapshots", "snapshot_times"} & set(content["context"])
    assert content["triple_frequency"]["counts"].sum() == len(dataset.facts)


def test_forecasts_by_label(predictor, of_jax):
    objects, subjects = np.exp(of_jax(LAST + 1)[[1 * N, (1 + R) * N]])  # of (COUNTRY A, 042, ?) and (?, 042, COUNTRY A)
    for row in predictor.predict("COUNTRY A", "042", top=N):
        assert row["probability"] == pytest.approx(objects[predictor.entity_to_id[row["object"]]], abs=1e-6)
    for row in predictor.predict_subjects("042", "COUNTRY A", top=N):
        assert row["probability"] == pytest.approx(subjects[predictor.entity_to_id[row["subject"]]], abs=1e-6)
    assert predictor.score("COUNTRY A", "042", "COUNTRY B") == pytest.approx(objects[1], abs=1e-6)


def test_many_queries_are_those_asked_one_by_one(predictor):
    many = np.tile(ALL, 2)
    at_once = predictor.log_probabilities(*many)
    assert len(at_once) > 128
    one_by_one = [predictor.log_probabilities(*query.reshape(2, 1))[0] for query in ALL.T]
    np.testing.assert_allclose(at_once, np.tile(one_by_one, (2, 1)), atol=1e-5)
    assert predictor.log_probabilities(*ALL[:, :0]).shape == (0, N)


def test_many_entities_are_counted_for_fewer_queries_at_once(predictor, monkeypatch):
    together = predictor.log_probabilities(*ALL)
    sizes, count = [], PastCounts.of
    monkeypatch.setattr("geopol_tkg.torch.predictor._MOST_ROWS", 2 * N + 1)
    monkeypatch.setattr(PastCounts, "of", lambda past, *queries: sizes.append(len(queries[0])) or count(past, *queries))
    np.testing.assert_allclose(predictor.log_probabilities(*ALL), together, atol=1e-6)
    assert max(sizes) == 2


def test_a_later_time_is_forecast_from_older_counts(predictor, of_jax):
    now = predictor.log_probabilities(*ALL)
    later = predictor.log_probabilities(*ALL, at="1970-01-21")
    np.testing.assert_allclose(later, of_jax(20), atol=1e-5)
    assert not np.allclose(now, later, atol=1e-2)
    np.testing.assert_array_equal(predictor.log_probabilities(*ALL), now)


def test_relations_and_embeddings_are_not_its_task(predictor):
    for ask in (predictor.predict_relations, predictor.relation_log_probabilities):
        given = ("COUNTRY A", "COUNTRY B") if ask == predictor.predict_relations else (np.array([0]), np.array([1]))
        with pytest.raises(GeopolTkgError, match="counts ranks entities, not relations"):
            ask(*given)
        assert len(ask(*given, baseline=True))
    with pytest.raises(GeopolTkgError, match="counts has no embeddings"):
        predictor.evolved()


@pytest.mark.parametrize("at_once", [True, False])
def test_an_updated_predictor_is_one_that_was_converted_later(result, dataset, predictor, at_once):
    updated = TKGPredictor(result["output"], device="cpu")
    updated.facts = known(dataset.facts[dataset.facts[:, 3] < CUT], CUT)
    before = updated.log_probabilities(*ALL)
    new = dataset.facts[dataset.facts[:, 3] >= CUT]
    for part in [new] if at_once else np.array_split(new, 7):  # parts end within a timestamp
        assert updated.update(part) == (len(part), 0, 0)
        updated.log_probabilities(*ALL[:, :1])
    assert updated.update(new[-1:]) == (0, 1, 0)
    assert updated.time == predictor.time
    assert sorted(updated.facts.quadruples.tolist()) == sorted(predictor.facts.quadruples.tolist())
    np.testing.assert_allclose(updated.log_probabilities(*ALL), predictor.log_probabilities(*ALL), atol=1e-6)
    assert not np.allclose(before, updated.log_probabilities(*ALL), atol=1e-2)
    skipped = updated.update([("ATLANTIS", "042", "COUNTRY A", "1970-01-13")], unknown="skip")
    assert (skipped, updated.time_index) == ((0, 0, 1), 13)


def test_the_card_says_what_the_model_is(result, dataset):
    card = Path(result["card"]).read_text(encoding="utf-8")
    assert "| counts halve in | 0.5, 3 steps |" in card
    assert "| paths followed to | 3 entities of each subject |" in card
    assert "Ranks the entities that complete a fact" in card
    assert f"up to {dataset.time_axis.label(LAST)}" in card
    assert "Gastinger" in card
    assert "snapshots" not in card


def test_safetensors_hold_what_the_pt_holds(checkpoint, dataset, predictor, tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "x.safetensors"
    assert convert(checkpoint, dataset, None, output=path, file_format="safetensors")["passed"]
    other = TKGPredictor(path, device="cpu")
    np.testing.assert_array_equal(other.log_probabilities(*ALL), predictor.log_probabilities(*ALL))


@pytest.mark.parametrize("file_format", ["torch-export", "onnx"])
def test_it_has_no_program(checkpoint, dataset, tmp_path, file_format):
    path = tmp_path / f"x{SUFFIXES[file_format]}"
    with pytest.raises(UsageError, match="use pt or safetensors"):
        convert(checkpoint, dataset, None, output=path, file_format=file_format)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module", params=[pytest.param("regcn", marks=pytest.mark.slow), "tirgn"])
def beside(request, dataset, tmp_path_factory):
    """A network with a counting model beside it: its conversion, and how to repeat it for another file."""
    config = make_config(request.param, count_prior=True, half_lives=CONFIG.half_lives, num_countries=2)
    history = build_for(dataset, window=config.history_window)
    counts = {f"counts/{name}": array for name, array in WEIGHTS.items() if not name.startswith("acquaintance/")}
    own = make_checkpoint(config, dataset, random_arrays(config) | counts)
    again = partial(convert, own, dataset, history)
    folder = tmp_path_factory.mktemp("beside")
    return again(output=folder / "x.pt", rank=partial(evaluate, dataset=dataset)), again


def test_a_network_beside_it_agrees_with_jax(beside):
    result, _ = beside
    assert result["passed"]
    assert result["full"]["passed"]
    assert 0 < result["max_abs_difference"] < 1e-4
    predictor = TKGPredictor(result["output"], device="cpu")
    with_prior = predictor.log_probabilities(*ALL)
    predictor.network.counts = None
    assert np.abs(predictor.log_probabilities(*ALL) - with_prior).max() > 0.1
    card = Path(result["card"]).read_text(encoding="utf-8")
    assert "beside a counting model" in card
    assert "| counts halve in | 0.5, 3 steps |" in card
    assert "| countries told apart | 2 |" in card
    assert "| history length | 3 snapshots |" in card


def test_a_network_beside_it_is_updated(beside, dataset):
    predictor, updated = (TKGPredictor(beside[0]["output"], device="cpu") for _ in range(2))
    updated.facts = known(dataset.facts[dataset.facts[:, 3] < CUT], CUT)
    before = updated.log_probabilities(*ALL)
    updated.update(dataset.facts[dataset.facts[:, 3] >= CUT])
    np.testing.assert_allclose(updated.log_probabilities(*ALL), predictor.log_probabilities(*ALL), atol=1e-5)
    assert not np.allclose(before, updated.log_probabilities(*ALL), atol=1e-2)
    relations = predictor.predict_relations("COUNTRY A", "COUNTRY B", top=R)
    assert sum(row["probability"] for row in relations) == pytest.approx(1, abs=1e-5)


def test_formats_of_a_network_beside_it(beside, tmp_path):
    pytest.importorskip("safetensors")
    result, again = beside
    path = tmp_path / "x.safetensors"
    assert again(output=path, file_format="safetensors")["passed"]
    predictors = [TKGPredictor(name, device="cpu") for name in (path, result["output"])]
    np.testing.assert_array_equal(*(predictor.log_probabilities(*ALL) for predictor in predictors))
    with pytest.raises(UsageError, match="use pt or safetensors"):
        again(output=tmp_path / "x.onnx", file_format="onnx")


def test_damaged_facts_are_refused(result, tmp_path):
    content = torch.load(result["output"], weights_only=True)
    content["context"]["facts"][0, 2] = N
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="a fact names an id that there is not"):
        TKGPredictor(tmp_path / "x.pt", device="cpu")
    del content["context"]["facts"]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="context lacks facts"):
        TKGPredictor(tmp_path / "x.pt", device="cpu")


def test_it_is_loaded_where_there_is_no_other_and_needs_torch_alone(result, predictor, tmp_path):
    folder = tmp_path / "models" / "tkg"
    folder.mkdir(parents=True)
    (folder / "counts_trained.pt").write_bytes(Path(result["output"]).read_bytes())
    blocked = dict.fromkeys(["jax", "flax", "optax", "pandas", "pyarrow", "scipy", "typer", "rich"])
    code = (
        f"import sys; sys.modules.update({blocked!r})\n"
        "from geopol_tkg.torch import TKGPredictor\n"
        "predictor = TKGPredictor(device='cpu')\n"
        "print(predictor.predict('COUNTRY A', '042', top=1)[0]['object'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == predictor.predict("COUNTRY A", "042", top=1)[0]["object"]
