"""What ``predict --explain`` says below its table: the past behind each candidate, in words."""

import textwrap
from collections.abc import Iterator
from typing import Any

_WIDTH = 80
_OTHER = {"object": "subject", "subject": "object"}
_HEADS = {
    "habit": "habit, it happened before",
    "relationship": "relationship, the two have met, but never so",
    "popularity": "never met; only its popularity speaks for it",
    "none": "never met, and never an answer; only the model speaks for it",
}


def explanation_lines(content: dict[str, Any], asked: str) -> Iterator[str]:
    """Lines of 80 columns from the JSON of the command; ``asked`` is object or subject."""
    code = content["relation"]
    act = _act(code, content["meaning"])
    yield ""
    yield f"Why? What the facts before {content['time']} say:"
    for place, row in enumerate(content["predictions"], 1):
        said, candidate = row["explanation"], row[asked]
        subject, object_ = (content["subject"], candidate) if asked == "object" else (candidate, content["object"])
        yield from _wrapped(f"{place}. {candidate}: {_HEADS[said['basis']]}", indent=0)
        if said["last_facts"]:
            yield from _wrapped(f"{subject} → {object_} {act}: {_times(said['fact'])}", indent=3)
            yield from _wrapped(f"any relation: {_meetings(said, subject, object_)}; the last:", indent=3)
            for fact in said["last_facts"]:
                pair = f"{fact['subject']} → {fact['object']}"
                yield from _wrapped(f"{fact['time']}  {pair}  {_act(fact['relation'], fact['meaning'])}", indent=5)
        else:
            if said["country"]:
                yield from _wrapped(f"both are of {said['country']}, which the model knows", indent=3)
            if path := said["path"]:
                others = "one has" if path["count"] == 1 else f"{path['count']:,} have"
                known = f"but {others} met both it and {path['through']}, whom {content[_OTHER[asked]]} has met"
                yield from _wrapped(known, indent=3)
        yield from _wrapped(_share(said["answer"], asked, act), indent=3)


def _act(code: str, meaning: str | None) -> str:
    return code if meaning is None else f"{code} {meaning}"


def _times(tally: dict[str, Any]) -> str:
    count = tally["count"]
    return f"{count:,} {'time' if count == 1 else 'times'}, last {tally['last_seen']}" if count else "never"


def _meetings(said: dict[str, Any], subject: str, object_: str) -> str:
    """How many facts there are in each direction; an entity and itself have only one."""
    parts = [f"{said['forward']['count']:,} {subject} → {object_}"]
    if subject != object_:
        parts.append(f"{said['backward']['count']:,} {object_} → {subject}")
    return ", ".join(parts)


def _share(answer: dict[str, Any], asked: str, act: str) -> str:
    """How often the candidate was the answer, whoever the other was."""
    if not answer["num_facts"]:
        return f"there is no fact {act} yet"
    return (
        f"{asked} in {answer['count']:,} of {answer['num_facts']:,} facts {act}, with anybody: "
        f"{100 * answer['share']:.1f} %"
    )


def _wrapped(text: str, *, indent: int) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(text, _WIDTH, initial_indent=margin, subsequent_indent=margin + "   ")
