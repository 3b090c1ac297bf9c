"""What a report says: figures of every model on the same queries, and where they come from."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from geopol_tkg.checkpoint import Checkpoint
from geopol_tkg.config import DEFAULT_MODEL_DIR, ModelConfig, SplitName, TrainConfig
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.evaluation.compare import paired_difference
from geopol_tkg.evaluation.results import Ranks
from geopol_tkg.forecasts import member_names
from geopol_tkg.report.curves import Curves

_PERIODS = 48  # points over test time, at most
_NOT_OPTIONS = ("num_entities", "num_relations", "model_type", "num_words", "num_static_edges", "num_countries")


@dataclass(frozen=True)
class Model:
    """A model that was measured.

    Attributes:
        name: what the report calls it; run: what the user called it.
        metrics: as ``eval --json`` has them.
        checkpoint, curves: None where there are none (baselines, ensembles).
        note: what a reader must know of these figures, or nothing.
    """

    name: str
    run: str
    ranks: Ranks
    metrics: dict[str, Any]
    checkpoint: Checkpoint | None = None
    curves: Curves | None = None
    note: str = ""

    @property
    def calibration(self) -> dict[str, Any] | None:
        """As ``eval --json`` has it; None for baselines."""
        return self.metrics["calibration"]

    @property
    def is_baseline(self) -> bool:
        """Whether it has scores only, no probabilities."""
        return self.calibration is None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the MRR over timestamps; None with a single one."""
        perfect = replace(self.ranks, rank=np.ones_like(self.ranks.rank))
        shortfall = paired_difference(self.ranks, perfect)
        if shortfall["ci_low"] is None or shortfall["ci_high"] is None:
            return None
        return 1 + shortfall["ci_low"], 1 + shortfall["ci_high"]


@dataclass(frozen=True)
class Example:
    """A query of the split, and what the first model answered.

    Attributes:
        row: the query's place among the ranks.
        answers: entity and probability (baselines: score) of the first candidates, none filtered out; empty where
            the model knows nothing of the query.
        true: the entities that make the fact true at this time; the target is one of them.
    """

    row: int
    answers: list[tuple[int, float]]
    true: frozenset[int]


@dataclass(frozen=True)
class Report:
    """All that a page shows; the first model is the one that it is about."""

    models: Sequence[Model]
    examples: Sequence[Example]
    dataset: Dataset
    split: SplitName
    seed: int
    command: str

    @property
    def ranks(self) -> Ranks:
        """Of the first model; all have the same queries."""
        return self.models[0].ranks

    @property
    def is_gdelt(self) -> bool:
        """Whether the events are GDELT's, by their columns or by the names of their files."""
        sources = [str(source["path"]) for source in self.dataset.details.get("sources", ())]
        return self.dataset.entity_kind != "given" or any("gdelt" in path.lower() for path in sources)


def by_relation(ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    """Number of queries and MRR of each relation, inverses with it: int64 [r], float64 [r] (NaN: no query)."""
    relation = ranks.relation % ranks.num_relations
    count = np.bincount(relation, minlength=ranks.num_relations)
    total = np.bincount(relation, 1 / ranks.rank, minlength=ranks.num_relations)
    return count, np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def over_time(ranks: Ranks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First time index, number of queries and MRR of consecutive periods of about equally many timestamps."""
    times, timestamp = np.unique(ranks.time, return_inverse=True)
    periods = min(_PERIODS, len(times))
    period_of = np.arange(len(times)) * periods // len(times)
    first = times[np.searchsorted(period_of, np.arange(periods))]
    count = np.bincount(period_of[timestamp])
    return first, count, np.bincount(period_of[timestamp], 1 / ranks.rank) / count


def true_answers(ranks: Ranks, row: int) -> frozenset[int]:
    """Entities that are true objects of a query at its time."""
    alike = (ranks.subject == ranks.subject[row]) & (ranks.relation == ranks.relation[row])
    return frozenset(ranks.object[alike & (ranks.time == ranks.time[row])].tolist())


def train_command(checkpoint: Checkpoint, model_dir: Path) -> str:
    """The command that trains a model like this one: all settings that are not the defaults.

    Which counting model a network began with is not known, COUNTS stands for it; nor which checkpoint was refitted,
    CHECKPOINT stands for that.
    """
    given = {**asdict(checkpoint.config), **checkpoint.settings}
    if given.get("refit_epochs"):
        words = ["geopol-tkg", "train", str(checkpoint.dataset["path"]), "--refit", "CHECKPOINT"]
        words += ["--through", given["through"], "--model-dir", str(model_dir), "--run-name", "refit"]
        return shlex.join(words + (["--count-prior", "COUNTS"] if given["count_prior"] else []))
    given |= {"static_graph": checkpoint.config.num_words > 0, "model_dir": str(model_dir)}
    defaults = {field.name: field.default for kind in (ModelConfig, TrainConfig) for field in fields(kind)}
    defaults |= {"static_graph": False, "countries": False, "model_dir": DEFAULT_MODEL_DIR}
    words = ["geopol-tkg", "train", str(checkpoint.dataset["path"]), "--model", checkpoint.config.model_type]
    if given.pop("count_prior"):  # which has its half-lives and countries
        words += ["--count-prior", "COUNTS"]
        del given["half_lives"]
    elif checkpoint.config.model_type == "counts":
        given["countries"] = checkpoint.config.num_countries > 0
    for name, value in given.items():
        if name in _NOT_OPTIONS or value is None or value == defaults.get(name):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def eval_command(model: Model, report: Report) -> str:
    """The command that prints a model's figures."""
    words = ["geopol-tkg", "eval", model.run]
    if report.dataset.path is not None:
        words += ["--data", str(report.dataset.path)]
    return shlex.join([*words, "--split", report.split])


def distinct_names(runs: Sequence[str]) -> list[str]:
    """The last parts of paths that tell them apart: ``tirgn_best``, or ``a/tirgn_best`` and ``b/tirgn_best``.

    Of an ensemble ``A+B`` those of each member.
    """
    members = [member_names(run) for run in runs]
    paths = {member: Path(member).parts for run in members for member in run}
    for length in range(1, max(map(len, paths.values()))):
        names = {member: "/".join(parts[-length:]) for member, parts in paths.items()}
        if len(set(names.values())) == len(names):
            return ["+".join(names[member] for member in run) for run in members]
    return list(runs)
