"""Whom paths lead to, against loops over the facts."""

from collections import defaultdict

import numpy as np
import pytest

from geopol_tkg.data.paths import PathIndex

N, R, LAST = 30, 2, 9
HALF_LIVES = (0.5, 3.0)
ALONE = N - 1
EVERYONE = np.arange(N)


def make_facts(seed=0):
    """Two that meet more than once, in both directions, some that meet themselves, and one that meets nobody."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, ALONE, (60, 2))
    rows = np.stack([ends[:, 0], rng.integers(0, R, 60), ends[:, 1], rng.integers(-2, LAST + 1, 60)], axis=1)
    again = rows[:15, [2, 1, 0, 3]] + [0, 0, 0, 1]
    itself = rows[:5, [0, 1, 0, 3]]
    facts = np.unique(np.concatenate([rows, again, itself]), axis=0).astype(np.int32)
    return facts[np.argsort(facts[:, 3], kind="stable")]


FACTS = make_facts()


def index(facts=FACTS, *, num_paths=N):
    return PathIndex(facts, num_entities=N, half_lives=HALF_LIVES, num_paths=num_paths)


def by_loops(facts, time, subject):
    """What every entity that the subject has not met has of paths: {o: k + 1 numbers}."""
    times = defaultdict(list)
    for s, _, o, t in facts.tolist():
        if t < time and s != o:
            times[s, o].append(t)
            times[o, s].append(t)
    rows = {x: np.array([np.log(1 + len(times.get((x, u), ()))) for u in range(N)]) for x in range(N)}
    found = {}
    for o in range(N):
        if o == subject or (subject, o) in times:
            continue
        sums = np.zeros(len(HALF_LIVES) + 1)
        for (s, x), own in times.items():
            if s == subject and (shared := rows[x] @ rows[o]):
                decayed = [sum(2 ** (-(time - t) / life) for t in own) for life in HALF_LIVES]
                sums += np.array([*decayed, len(own)]) * shared / np.linalg.norm(rows[x]) / np.linalg.norm(rows[o])
        if sums[-1]:
            found[o] = sums
    return found


def as_found(paths, row):
    kept = paths.objects[row] < N
    return dict(zip(paths.objects[row][kept].tolist(), paths.features[row][kept], strict=True))


@pytest.mark.parametrize("time", [-2, -1, 4, LAST + 1, LAST + 30])
def test_paths_are_those_of_loops(time):
    paths = index().of(time, EVERYONE)
    assert paths.objects.dtype == np.int32
    assert paths.features.dtype == np.float32
    for subject in range(N):
        expected, found = by_loops(FACTS, time, subject), as_found(paths, subject)
        assert found.keys() == expected.keys()
        for o, features in found.items():
            np.testing.assert_allclose(features, np.log(1 + 20 * expected[o]), rtol=1e-5, atol=1e-7)
    some = (paths.objects < N).any(axis=1)
    assert not some[ALONE]
    assert some.any() == (time > -2)


def test_the_most_come_first_and_ties_go_to_the_lower_number():
    every, few = index().of(LAST + 1, EVERYONE), index(num_paths=4).of(LAST + 1, EVERYONE)
    np.testing.assert_array_equal(few.objects, every.objects[:, :4])
    np.testing.assert_array_equal(few.features, every.features[:, :4])
    ties = 0
    for subject in range(N):
        expected = by_loops(FACTS, LAST + 1, subject)
        order = sorted(expected, key=lambda o: (-np.float32(expected[o].sum()), o))
        ties += len(order) - len({np.float32(expected[o].sum()) for o in order})
        assert list(as_found(every, subject)) == order
    assert ties


def test_times_may_be_asked_in_any_order_and_subjects_repeat():
    one = index()
    for time, subjects in ((5, [3, 3, N, 1]), (9, [2, 0]), (5, [3]), (4, [N, N]), (4, [])):
        paths, fresh = one.of(time, np.array(subjects, int)), index().of(time, EVERYONE)
        assert paths.objects.shape == (len(subjects), N)
        for row, subject in enumerate(subjects):
            assert as_found(paths, row).keys() == (set() if subject == N else as_found(fresh, subject).keys())
            for o, features in as_found(paths, row).items():
                np.testing.assert_allclose(features, as_found(fresh, subject)[o], rtol=1e-6)


def test_later_facts_change_nothing():
    past = FACTS[FACTS[:, 3] < 5]
    for found, expected in zip(index().of(5, EVERYONE), index(past).of(5, EVERYONE), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_horizon_hides_facts_and_does_not_stop_the_clock():
    one, earlier = index(), index(FACTS[FACTS[:, 3] < 5])
    for time in (7, 9, 4, 9):
        for found, expected in zip(one.of(time, EVERYONE, horizon=5), earlier.of(time, EVERYONE), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.array_equal(one.of(9, EVERYONE).features, earlier.of(9, EVERYONE).features)


def test_few_subjects_at_once_find_the_same(monkeypatch):
    together = index().of(LAST + 1, EVERYONE)
    sizes, most = [], PathIndex._most
    monkeypatch.setattr("geopol_tkg.data.paths._MOST_ENTRIES", 2 * N)
    monkeypatch.setattr(PathIndex, "_most", lambda own, subjects: sizes.append(len(subjects)) or most(own, subjects))
    for found, expected in zip(index().of(LAST + 1, EVERYONE), together, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert max(sizes) == 2


def test_long_before_the_first_fact_there_is_nothing_that_could_fade():
    early = index()
    assert (early.of(-9999, EVERYONE).objects == N).all()
    np.testing.assert_array_equal(early.of(5, EVERYONE).objects, index().of(5, EVERYONE).objects)


def test_no_facts_lead_nowhere():
    assert (index(FACTS[:0]).of(3, EVERYONE).objects == N).all()
