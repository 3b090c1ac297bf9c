"""Explanations against a plain loop over the facts."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from small_world import LAST, N, R, make_dataset

from geopol_tkg.data.countries import Countries
from geopol_tkg.data.dataset import Dataset, Split
from geopol_tkg.data.paths import PathIndex
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.explain import Past

COUNTRIES = ["A", "B", None, "A", "B", "B", None, None, "A", None, None, "B"]
KNOWN = Countries(("A", "B"), np.array([-1 if name is None else "AB".index(name) for name in COUNTRIES], np.int32))


def by_a_loop(dataset, entity, relation, candidate, *, direction, time, led_to):
    """The same dictionary, fact by fact."""
    s, o = (entity, candidate) if direction == "object" else (candidate, entity)
    asked = 2 if direction == "object" else 0
    past = [row for row in dataset.facts.tolist() if row[3] < time]

    def tally(rows):
        return {"count": len(rows), "last_seen": dataset.time_axis.label(max(row[3] for row in rows)) if rows else None}

    fact = [row for row in past if row[:3] == [s, relation, o]]
    forward, backward = ([row for row in past if (row[0], row[2]) == pair] for pair in ((s, o), (o, s)))
    of_relation = [row for row in past if row[1] == relation]
    answers = [row for row in of_relation if row[asked] == candidate]
    between = [row for row in past if (row[0], row[2]) in ((s, o), (o, s))]
    basis = "none"
    for name, rows in (("popularity", answers), ("relationship", between), ("habit", fact)):
        basis = name if rows else basis
    share = len(answers) / len(of_relation) if of_relation else None
    country = COUNTRIES[entity] if COUNTRIES[entity] == COUNTRIES[candidate] else None
    pairs = {(a, b) for a, _, b, _ in past if a != b} | {(b, a) for a, _, b, _ in past if a != b}
    shared = [sum((u, x) in pairs and (u, candidate) in pairs for u in range(N)) for x in range(N)]
    ways = [(-count, x) for x, count in enumerate(shared) if count and (entity, x) in pairs]
    path = None
    if candidate in led_to:
        path = {"through": dataset.entities[min(ways)[1]], "count": -min(ways)[0]}
    return {
        "basis": basis,
        "fact": tally(fact),
        "forward": tally(forward),
        "backward": tally(backward),
        "answer": tally(answers) | {"share": share, "num_facts": len(of_relation)},
        "country": country,
        "path": path,
        "last_facts": [
            {
                "subject": dataset.entities[a],
                "relation": dataset.relations[r],
                "meaning": None,
                "object": dataset.entities[b],
                "time": dataset.time_axis.label(t),
            }
            for a, r, b, t in between[::-1][:3]
        ],
    }


@pytest.mark.parametrize("direction", ["object", "subject"])
@pytest.mark.parametrize("time", [1, 5, LAST + 1])
def test_it_is_what_a_loop_finds(direction, time):
    dataset = make_dataset(size=400)
    found, paths = set(), []
    index = PathIndex(dataset.facts, num_entities=N, half_lives=(1.0,), num_paths=2)
    for entity, relation in product(range(N), range(R)):
        led_to = index.of(time, np.array([entity])).objects[0]
        past = Past(dataset, entity, relation, direction=direction, time=time, countries=KNOWN, led_to=led_to)
        for candidate in range(N):
            said = past.explanation(candidate)
            assert said == by_a_loop(
                dataset, entity, relation, candidate, direction=direction, time=time, led_to=led_to
            )
            assert past.last_seen(candidate) == said["fact"]["last_seen"]
            found.add(said["basis"])
            paths.append(said["path"])
    assert found == {"habit", "relationship", "popularity", "none"}
    assert any(paths)


def test_what_comes_later_says_nothing():
    dataset = make_dataset()
    facts = dataset.facts.copy()
    facts[facts[:, 3] >= 8, 2] = 3
    both = [Past(one, 1, 2, direction="object", time=8) for one in (dataset, replace(dataset, facts=facts))]
    assert [both[0].explanation(i) for i in range(N)] == [both[1].explanation(i) for i in range(N)]


def test_times_before_the_first_index_and_codes_in_words():
    facts = np.array([(0, 1, 1, -3), (1, 0, 0, -2)], np.int32)
    axis = TimeAxis(3 * 86400, 86400, "1d")
    dataset = Dataset(("A", "B"), ("042", "112"), facts, Split(1, 2), axis, "name", "event-code")
    said = Past(dataset, 0, 0, direction="object", time=0).explanation(1)
    assert said["forward"] == {"count": 1, "last_seen": "1970-01-01T00:00:00Z"}
    assert [(row["relation"], row["meaning"]) for row in said["last_facts"]] == [
        ("042", "make a visit"),
        ("112", "accuse"),
    ]
