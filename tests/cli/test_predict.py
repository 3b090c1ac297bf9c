"""``predict --explain``: what the JSON holds, and the same in words of 80 columns."""

import pytest
from cli_helpers import call

from geopol_tkg.cli._explanations import explanation_lines

QUERY = ("predict", "ENTITY 1", "042", "--top", "8")


def test_the_json_has_an_explanation_of_each_prediction(world):
    plain, explained = (call(*QUERY, "--json", *more).json() for more in ((), ("--explain",)))
    assert explained["meaning"] == "make a visit"
    for row, wanted in zip(explained["predictions"], plain["predictions"], strict=True):
        said = row.pop("explanation")
        assert row == wanted
        assert said["fact"]["last_seen"] == row["last_seen"]
        assert (said["basis"] == "habit") == row["seen_before"] == (said["fact"]["count"] > 0)
        assert len(said["last_facts"]) == min(3, said["forward"]["count"] + said["backward"]["count"])


def test_the_words_say_what_the_json_says(world):
    for more in ((), ("--object", "--at", "2017-11-01T09:00")):
        content = call(*QUERY, *more, "--explain", "--json").json()
        asked = "subject" if more else "object"
        table, said = call(*QUERY, *more, "--explain").out.split("\n\nWhy? ")
        assert table == call(*QUERY, *more).out.rstrip("\n")
        assert said.startswith(f"What the facts before {content['time']} say:\n")
        assert max(map(len, said.splitlines())) <= 80
        together = " ".join(said.split())
        for row in content["predictions"]:
            found = row["explanation"]
            pair = ["ENTITY 1", row[asked]][:: -1 if more else 1]
            times = f"{found['fact']['count']} time"
            wanted = f"{' → '.join(pair)} 042 make a visit: {times if row['seen_before'] else 'never'}"
            assert (wanted in together) == bool(found["last_facts"])
            for fact in found["last_facts"]:
                assert f"{fact['time']} {fact['subject']} → {fact['object']}" in together
            assert f"{asked} in {found['answer']['count']} of {found['answer']['num_facts']} facts" in together


def test_what_never_happened_is_said_plainly(world):
    content = call(*QUERY, "--explain", "--at", "2017-11-01T01:00", "--json").json()
    said = call(*QUERY, "--explain", "--at", "2017-11-01T01:00").out
    bases = [row["explanation"]["basis"] for row in content["predictions"]]
    assert "none" in bases
    assert said.count("only the model speaks for it") == bases.count("none")


def test_an_entity_and_itself_and_a_relation_without_facts():
    never, once = {"count": 0, "last_seen": None}, {"count": 1, "last_seen": "7"}
    said = {
        "basis": "relationship",
        "fact": never,
        "forward": once,
        "backward": once,
        "answer": never | {"share": None, "num_facts": 0},
        "path": None,
        "last_facts": [{"subject": "A", "relation": "r2", "meaning": None, "object": "A", "time": "7"}],
    }
    content = {"subject": "A", "relation": "r1", "meaning": None, "time": "9"}
    assert list(explanation_lines(content | {"predictions": [{"object": "A", "explanation": said}]}, "object")) == [
        "",
        "Why? What the facts before 9 say:",
        "1. A: relationship, the two have met, but never so",
        "   A → A r1: never",
        "   any relation: 1 A → A; the last:",
        "     7  A → A  r2",
        "   there is no fact r1 yet",
    ]


@pytest.mark.parametrize(
    ("asked", "count", "known"),
    [("object", 1, "but one has met both it and C,"), ("subject", 12, "but 12 have met both it and C,")],
)
def test_a_path_is_said_in_words(asked, count, known):
    never = {"count": 0, "last_seen": None}
    said = {"basis": "popularity", "fact": never, "forward": never, "backward": never, "last_facts": []}
    said |= {"answer": {"count": 1, "last_seen": "7", "share": 0.5, "num_facts": 2}, "country": None}
    said |= {"path": {"through": "C", "count": count}}
    given = "subject" if asked == "object" else "object"
    content = {given: "A", "relation": "r1", "meaning": None, "time": "9"}
    assert list(explanation_lines(content | {"predictions": [{asked: "B", "explanation": said}]}, asked))[2:] == [
        "1. B: never met; only its popularity speaks for it",
        f"   {known} whom A has met",
        f"   {asked} in 1 of 2 facts r1, with anybody: 50.0 %",
    ]
