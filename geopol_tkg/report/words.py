"""Times, relations and questions in words."""

from datetime import UTC, datetime

from geopol_tkg.data.cameo_words import relation_meaning
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.time_axis import TimeAxis
from geopol_tkg.data.times import DAY


def time_words(axis: TimeAxis, index: int, *, short: bool = False) -> str:
    """``7 November 2017, 14:00 UTC``; the clock only where steps are shorter than a day."""
    if axis.granularity is None:
        return axis.label(index) if short else f"Time {axis.label(index)}"
    moment = datetime.fromtimestamp(axis.origin + index * axis.step, UTC)
    month = f"{moment:%b}" if short else f"{moment:%B}"
    day = f"{moment.day} {month} {moment.year}"
    if axis.step % DAY == 0:
        return day
    return f"{moment.day} {month} {moment:%H:%M}" if short else f"{day}, {moment:%H:%M} UTC"


def relation_words(dataset: Dataset, relation: int) -> str:
    """A relation's label, and what a CAMEO code means: ``042 make a visit``."""
    label = dataset.relations[relation]
    meant = relation_meaning(dataset.relation_kind, label)
    return label if meant is None else f"{label} {meant}"


def question(dataset: Dataset, entity: int, relation: int, time: int) -> str:
    """What ``(entity, relation, ?, time)`` asks; an inverse relation asks for the subject."""
    when, label = time_words(dataset.time_axis, time), dataset.entities[entity]
    code = dataset.relations[relation % dataset.num_relations]
    meant = relation_meaning(dataset.relation_kind, code)
    act = f"“{code}”" if meant is None else f"“{meant}” ({code})"
    if relation < dataset.num_relations:
        return f"{when}: towards whom does {label} {act}?"
    return f"{when}: who does {act} towards {label}?"
