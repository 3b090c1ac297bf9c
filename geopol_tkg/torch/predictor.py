"""Forecasts from a ``.pt`` file alone: no jax, no dataset."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from geopol_tkg.errors import DataError, GeopolTkgError
from geopol_tkg.torch import frequency
from geopol_tkg.torch.clock import Clock
from geopol_tkg.torch.counts import CountModel
from geopol_tkg.torch.facts import KnownFacts, Matches
from geopol_tkg.torch.files import default_path, read, restore, temperature
from geopol_tkg.torch.labels import Labels, checked_ids
from geopol_tkg.torch.modules import Evolved, Queries
from geopol_tkg.torch.past import Counts, PastCounts

Time = str | datetime | None
Unknown = Literal["error", "zero"]
_LATEST = np.iinfo(np.int32).max
_MOST_QUERIES, _MOST_ROWS = 64, 1 << 20  # counted at once; a row is what is counted of a query and an entity


class Update(NamedTuple):
    """What became of the facts given to :meth:`TKGPredictor.update`."""

    added: int
    repeated: int  # given twice, or known already
    skipped: int  # name a label that the model does not know


class TKGPredictor:
    """A trained network and the facts it looks at.

    The snapshots are evolved at the first forecast, and again only after :meth:`update`; what a counting model has
    counted is kept as long as neither facts nor the time asked for change. Threads may
    forecast and update at once: each forecast sees the facts before or after an update, never half.

    Args:
        path: a ``.pt`` or ``.safetensors`` that ``geopol-tkg convert`` wrote; by default what
            it wrote last to ``models/tkg``, of ``tirgn_trained.pt``, ``regcn_trained.pt`` and ``counts_trained.pt``.
        device: ``auto`` (CUDA where there is one), or any name that torch knows.

    Attributes:
        config: the network's sizes and settings.
        network: the network in evaluation mode; after a change of its weights, call ``update([])``.
        entity_to_id, relation_to_id: ids by label.
        facts: what is known of the past.
        temperature: that probabilities of entities are read with; log-probabilities are as the network has them,
            and so are probabilities of relations.

    Raises:
        CheckpointError: the file is missing, damaged, foreign or of another format version.
        GeopolTkgError: the device is not there.

    What the forecasts take:
        top: how many rows.
        at: the time to forecast, after the last facts known; by default the step that follows them.
        baseline: go by how often facts were true in the past (``frequency``), not by the network.
        unknown: what an unknown label brings: ``error`` a DataError that names the nearest labels, ``zero``
            a probability of zero, and so no rows.

    Rows are dictionaries, likeliest first: a label under ``object``, ``subject`` or ``relation``;
    ``probability``, which sums to one over all that could stand there; ``seen_before``, whether the fact was
    ever true; ``last_seen``, when (None: never).
    """

    def __init__(self, path: str | Path | None = None, device: str = "auto") -> None:
        self.path = default_path() if path is None else Path(path)
        self.device = _device(device)
        contents = read(self.path)
        self.config, self.network, self.facts = restore(self.path, contents)
        self.temperature = temperature(self.path, contents)
        self.network.to(self.device).eval()
        self._entities = Labels(contents["entity_to_id"], "entity")
        self._relations = Labels(contents["relation_to_id"], "relation")
        self.entity_to_id, self.relation_to_id = self._entities.ids, self._relations.ids
        self._clock = Clock.of(contents["context"])
        self._evolved: tuple[KnownFacts, Evolved] | None = None
        self._counted: PastCounts | None = None
        self._updating = Lock()

    @property
    def time_index(self) -> int:
        """Steps from the first timestamp to the one that is forecast by default."""
        return self.facts.time_index

    @property
    def time(self) -> str:
        """When that step begins."""
        return self._clock.label(self.time_index)

    def predict(
        self,
        subject: str,
        relation: str,
        top: int = 10,
        at: Time = None,
        *,
        baseline: bool = False,
        unknown: Unknown = "error",
    ) -> list[dict[str, Any]]:
        """The likeliest objects of ``(subject, relation, ?)``.

        Raises:
            DataError: a label that the model does not know, or a time that is past.
        """
        query = self._query(unknown, (self._entities, subject), (self._relations, relation))
        if query is None:
            return []
        scores, matches = self._score_objects(*query, at, baseline)
        return self._rows("object", self._entities, self._tempered(scores, baseline)[0], matches, top)

    def predict_subjects(
        self,
        relation: str,
        object: str,
        top: int = 10,
        at: Time = None,
        *,
        baseline: bool = False,
        unknown: Unknown = "error",
    ) -> list[dict[str, Any]]:
        """The likeliest subjects of ``(?, relation, object)``; raises as :meth:`predict` does."""
        query = self._query(unknown, (self._entities, object), (self._relations, relation))
        if query is None:
            return []
        scores, matches = self._score_objects(query[0], query[1] + self.config.num_relations, at, baseline)
        return self._rows("subject", self._entities, self._tempered(scores, baseline)[0], matches, top)

    def predict_relations(
        self,
        subject: str,
        object: str,
        top: int = 10,
        at: Time = None,
        *,
        baseline: bool = False,
        unknown: Unknown = "error",
    ) -> list[dict[str, Any]]:
        """The likeliest relations of ``(subject, ?, object)``; raises as :meth:`relation_log_probabilities` does."""
        query = self._query(unknown, (self._entities, subject), (self._entities, object))
        if query is None:
            return []
        scores, matches = self._score_relations(*query, at, baseline)
        return self._rows("relation", self._relations, scores[0], matches, top)

    def score(
        self,
        subject: str,
        relation: str,
        object: str,
        at: Time = None,
        *,
        baseline: bool = False,
        unknown: Unknown = "error",
    ) -> float:
        """Probability of the object, given subject and relation; raises as :meth:`predict` does."""
        labels = (self._entities, subject), (self._relations, relation), (self._entities, object)
        query = self._query(unknown, *labels)
        if query is None:
            return 0.0
        subjects, relations, objects = query
        scores = self.log_probabilities(subjects, relations, at, baseline=baseline)
        return float(np.exp(self._tempered(scores, baseline)[0, objects[0]]))

    def scores(
        self,
        subjects: np.ndarray,
        relations: np.ndarray,
        objects: np.ndarray,
        at: Time = None,
        *,
        baseline: bool = False,
    ) -> np.ndarray:
        """Log-probability of each object, given subject and relation: float32 [b] from ids [b]."""
        objects = checked_ids(objects, self.config.num_entities, "object")
        return self.log_probabilities(subjects, relations, at, baseline=baseline)[np.arange(len(objects)), objects]

    def log_probabilities(
        self, subjects: np.ndarray, relations: np.ndarray, at: Time = None, *, baseline: bool = False
    ) -> np.ndarray:
        """Log-probabilities of all entities as objects: float32 [b, n].

        Args:
            subjects, relations: ids [b]; a relation ``r + R`` asks for the subjects of ``r``.

        Raises:
            DataError: no such id, or a time that is past.
        """
        return self._score_objects(subjects, relations, at, baseline)[0]

    def relation_log_probabilities(
        self, subjects: np.ndarray, objects: np.ndarray, at: Time = None, *, baseline: bool = False
    ) -> np.ndarray:
        """Log-probabilities of all relations from subject to object, without inverses: float32 [b, r] from ids [b].

        Raises:
            DataError: no such id, or a time that is past.
            GeopolTkgError: a counting model, which ranks entities only.
        """
        return self._score_relations(subjects, objects, at, baseline)[0]

    def update(self, facts: Iterable[Any] | np.ndarray, *, unknown: Literal["error", "skip"] = "error") -> Update:
        """Append facts that have become known; the forecast moves to the step after the last of them.

        Args:
            facts: rows ``(subject, relation, object, time)`` of labels, times as in ``at``; or integers [f, 4], ids and
                time indices. None may lie before the last facts known; their step may be completed.
            unknown: ``skip`` leaves out facts that name a label the model does not know.

        Raises:
            DataError: an unknown label or id, a time that cannot be read, or one before the last facts known.
                Nothing is appended then.
        """
        if isinstance(facts, np.ndarray) and np.issubdtype(facts.dtype, np.integer):
            rows, skipped = facts.reshape(-1, 4).astype(np.int64), 0
            last = max(rows[:, 3].tolist(), default=None)
        else:
            rows, skipped, last = self._translate(facts, unknown)
        with self._updating:
            known = self.facts
            self._require_new(rows, last, known)
            added = len(known.new_among(rows))
            following = known.time_index if last is None else max(known.time_index, last + 1)
            self.facts = known.extended(rows, time_index=following)
        return Update(added, len(rows) - added, skipped)

    def evolved(self) -> Evolved:
        """Embeddings after the last snapshot known, without gradients; not to be changed.

        Raises:
            GeopolTkgError: a counting model, which has none.
        """
        return self._evolve(self.facts)

    def _translate(self, facts: Iterable[Any], unknown: str) -> tuple[np.ndarray, int, int | None]:
        """Facts by label as int64 [f, 4], how many are left out, and the last time index of all."""
        rows, skipped, last = [], 0, None
        for fact in facts:
            try:
                subject, relation, object_, time = fact
            except (TypeError, ValueError) as error:
                raise DataError(f"{fact!r} is not (subject, relation, object, time)") from error
            labels = (self._entities, subject), (self._relations, relation), (self._entities, object_)
            ids = self._query("zero" if unknown == "skip" else "error", *labels)
            index = self._clock.index(time)
            last = index if last is None else max(last, index)
            if ids is None:
                skipped += 1
            else:
                rows.append([*(int(array[0]) for array in ids), index])
        return np.array(rows, np.int64).reshape(-1, 4), skipped, last

    def _require_new(self, rows: np.ndarray, last: int | None, known: KnownFacts) -> None:
        entities, relations = self.config.num_entities, self.config.num_relations
        for column, (what, size) in enumerate([("subject", entities), ("relation", relations), ("object", entities)]):
            checked_ids(rows[:, column], size, what)
        if last is not None and last >= _LATEST:
            raise DataError(f"a fact with time index {last}: too far ahead")
        if len(rows) and known.snapshot_times and int(rows[:, 3].min()) < known.snapshot_times[-1]:
            found, wanted = self._clock.label(int(rows[:, 3].min())), self._clock.label(known.snapshot_times[-1])
            raise DataError(f"a fact of {found} lies before the last known, those of {wanted}: it cannot be appended")

    def _tempered(self, scores: np.ndarray, baseline: bool) -> np.ndarray:
        """Log-probabilities [b, n] of entities, the network's read with the temperature."""
        if baseline:
            return scores
        return log_softmax(torch.from_numpy(scores).double() / self.temperature, dim=1).numpy()

    @torch.no_grad()
    def _score_objects(
        self, subjects: np.ndarray, relations: np.ndarray, at: Time, baseline: bool
    ) -> tuple[np.ndarray, Matches]:
        facts, size = self.facts, self.config.num_entities
        subjects = checked_ids(subjects, size, "subject")
        relations = checked_ids(relations, 2 * self.config.num_relations, "relation")
        time, matches = self._time_index(facts, at), facts.objects(subjects, relations)
        if baseline:
            return frequency.log_shares(frequency.object_scores(facts, subjects, relations)), matches
        if isinstance(self.network, CountModel):
            scores = log_softmax(self._count(self.network, facts, subjects, relations, time), dim=1)
        else:
            queries = self._queries(subjects, relations, time, matches, size)
            if self.network.counts is not None:
                queries = queries._replace(prior=self._count(self.network.counts, facts, subjects, relations, time))
            scores = self.network.entity_log_probabilities(self._evolve(facts), queries)
        return scores.cpu().numpy(), matches

    def _count(
        self, model: CountModel, facts: KnownFacts, subjects: np.ndarray, relations: np.ndarray, time: int
    ) -> Tensor:
        """The counting model's scores [b, n]."""
        past = self._counted
        if past is None or past.facts is not facts or past.time != time:
            config = self.config
            past = self._counted = PastCounts(facts, time, half_lives=config.half_lives, num_paths=config.num_paths)
        scores = torch.empty(len(subjects), self.config.num_entities, device=self.device)
        size = max(1, min(_MOST_QUERIES, _MOST_ROWS // self.config.num_entities))
        for first in range(0, len(subjects), size):
            block = slice(first, first + size)
            counts = past.of(subjects[block], relations[block])
            scores[block] = model(Counts(*(torch.from_numpy(part).to(self.device) for part in counts)))
        return scores

    @torch.no_grad()
    def _score_relations(
        self, subjects: np.ndarray, objects: np.ndarray, at: Time, baseline: bool
    ) -> tuple[np.ndarray, Matches]:
        facts, size = self.facts, self.config.num_relations
        subjects = checked_ids(subjects, self.config.num_entities, "subject")
        objects = checked_ids(objects, self.config.num_entities, "object")
        time, matches = self._time_index(facts, at), facts.relations(subjects, objects)
        if baseline:
            return frequency.log_shares(frequency.relation_scores(facts, subjects, objects)[:, :size]), matches
        if isinstance(self.network, CountModel):
            name = self.config.model_type
            raise GeopolTkgError(f"{name} ranks entities, not relations: ask a network, or give baseline=True")
        queries = self._queries(subjects, objects, time, matches, 2 * size)
        both = self.network.relation_log_probabilities(self._evolve(facts), queries)
        return log_softmax(both[:, :size], dim=1).cpu().numpy(), matches

    @torch.no_grad()
    def _evolve(self, facts: KnownFacts) -> Evolved:
        if isinstance(self.network, CountModel):
            raise GeopolTkgError(f"{self.config.model_type} has no embeddings to evolve")
        cached = self._evolved
        if cached is None or cached[0] is not facts:
            snapshots = facts.snapshots[-self.config.history_length :]
            cached = facts, self.network.encoder([self._put(snapshot) for snapshot in snapshots])
            self._evolved = cached
        return cached[1]

    def _queries(self, first: np.ndarray, second: np.ndarray, time: int, matches: Matches, size: int) -> Queries:
        window = self.config.history_window
        seen = matches.mask((len(first), size), since=time - window if window else None)
        return Queries(self._put(first), self._put(second), time, torch.from_numpy(seen).to(self.device))

    def _put(self, ids: np.ndarray) -> Tensor:
        return torch.as_tensor(ids, dtype=torch.int64, device=self.device)

    def _time_index(self, facts: KnownFacts, at: Time) -> int:
        if at is None:
            return facts.time_index
        time = self._clock.index(at)
        if facts.snapshot_times and time <= facts.snapshot_times[-1]:
            last = self._clock.label(facts.snapshot_times[-1])
            raise DataError(f"{at} is not after the last facts known, those of {last}: only what follows is forecast")
        if time > _LATEST:
            raise DataError(f"{at}: too far ahead")
        return time

    @staticmethod
    def _query(unknown: str, *asked: tuple[Labels, str]) -> list[np.ndarray] | None:
        """An id [1] for each label; None when one is unknown and brings ``zero``."""
        if unknown == "zero" and any(label not in labels.ids for labels, label in asked):
            return None
        return [np.array([labels.look_up(label)]) for labels, label in asked]

    def _rows(self, what: str, labels: Labels, scores: np.ndarray, matches: Matches, top: int) -> list[dict[str, Any]]:
        if top < 1:
            raise DataError(f"top is {top}, wanted 1 or more")
        last_seen = dict(zip(matches.candidate.tolist(), matches.last_seen.tolist(), strict=True))
        return [
            {
                what: labels.names[i],
                "probability": float(np.exp(scores[i])),
                "seen_before": i in last_seen,
                "last_seen": self._clock.label(last_seen[i]) if i in last_seen else None,
            }
            for i in np.argsort(-scores, kind="stable")[:top].tolist()
        ]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise GeopolTkgError(f"device {name!r} is not there: {str(error).splitlines()[0]}") from error
