"""A JAX checkpoint to a file for PyTorch, checked against the JAX scores before it gets its name."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from geopol_tkg.checkpoint import Checkpoint
from geopol_tkg.config import PARITY_TOLERANCE, ModelConfig
from geopol_tkg.data.dataset import Dataset, with_inverses
from geopol_tkg.data.files import replace_file
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.errors import CheckpointError, DataError, GeopolTkgError, UsageError
from geopol_tkg.models.registry import build_context, build_forecaster, uses_vocabulary

if TYPE_CHECKING:
    from geopol_tkg.evaluation.results import Ranks
    from geopol_tkg.models.base import Forecaster
    from geopol_tkg.torch.predictor import TKGPredictor

FileFormat = Literal["pt", "safetensors", "torch-export", "onnx"]
Rearrange = Callable[[np.ndarray], np.ndarray]

SUFFIXES: dict[FileFormat, str] = {
    "pt": ".pt",
    "safetensors": ".safetensors",
    "torch-export": ".pt2",
    "onnx": ".onnx",
}


def _same(array: np.ndarray) -> np.ndarray:
    return array


# Last part of an array's name: its name in torch, and how its axes are rearranged.
_LEAVES: dict[str, tuple[str, Rearrange]] = {
    "entity_embedding": ("entity_embedding.weight", _same),
    "relation_embedding": ("relation_embedding.weight", _same),
    "word_embedding": ("word_embedding.weight", _same),
    "block_weight": ("block_weight", _same),
    "edges": ("edges", _same),
    "input_weight": ("weight_ih", np.transpose),  # gates reset, update, new in both
    "hidden_weight": ("weight_hh", np.transpose),
    "input_bias": ("bias_ih", _same),
    "hidden_bias": ("bias_hh", _same),
    "message_weight": ("message.weight", np.transpose),
    "loop_weight": ("loop.weight", np.transpose),
    "isolated_weight": ("isolated.weight", np.transpose),
    "mix_weight": ("mix.weight", lambda weight: weight.reshape(1, 2, 1)),
    "mix_bias": ("mix.bias", _same),
    "gate_weight": ("gate.weight", np.transpose),
    "gate_bias": ("gate.bias", _same),
    "conv_weight": ("conv.weight", np.transpose),  # [width, inputs, c] to [c, inputs, width]
    "conv_bias": ("conv.bias", _same),
    "linear_weight": ("linear.weight", lambda weight: weight.transpose(2, 1, 0).reshape(weight.shape[2], -1)),
    "linear_bias": ("linear.bias", _same),
    "scale": ("weight", _same),
    "bias": ("bias", _same),
    "mean": ("running_mean", _same),
    "var": ("running_var", _same),
    **{name: (name, _same) for name in ("weight", "context_weight", "output", "linear")},  # of counts, as all below
    **{name: (name, _same) for name in ("answer_relations", "history_relations", "next_relation", "last_relation")},
    **{
        name: (name, _same)
        for name in ("relation_weights", "unseen_bias", "history_bias", "relation_bias", "path_relations")
    },
    "countries": ("countries", _same),
}


def convert(
    checkpoint: Checkpoint,
    dataset: Dataset,
    history: HistoryVocabulary | None,
    *,
    output: Path,
    file_format: FileFormat = "pt",
    time: int | None = None,
    tolerance: float = PARITY_TOLERANCE,
    num_queries: int = 256,
    seed: int = 0,
    rank: "Callable[[Forecaster], Ranks] | None" = None,
) -> dict[str, Any]:
    """Write a checkpoint, with what a forecast of the step after the dataset needs, and a model card beside it.

    The file is written under a temporary name, read back (formats other than ``pt`` in a fresh process) and
    asked ``num_queries`` queries of that step. Only when no log-probability differs from JAX's by more
    than ``tolerance`` does it become ``output``; else it is deleted, and a file that was there before stays.

    Args:
        dataset: has the checkpoint's ids and time axis.
        history: the dataset's, with the network's window; None for a model that looks at none.
        time: index of the step to forecast; by default the one after the dataset's last fact.
        rank: ranks the test split of ``dataset`` by a forecaster; both networks must then agree on all of it.

    Returns:
        ``output, model_type, num_parameters, max_abs_difference, tolerance, passed, format, card,
        num_queries``, and with ``rank`` what :func:`geopol_tkg.torch.parity.compare_split` returns as ``full``.

    Raises:
        GeopolTkgError: torch, or what the format needs, is not installed.
        DataError: dataset or history do not fit the checkpoint.
        UsageError: the model has no such format, or the output is there and no file.
        CheckpointError: a weight is not finite.
    """
    if output.exists() and not output.is_file():
        raise UsageError(f"{output}: is no file; convert writes one, with a card beside it: name another --output")
    _require_torch()
    _require_fit(checkpoint, dataset, history)
    from geopol_tkg.torch.card import model_card
    from geopol_tkg.torch.modules import parameter_count
    from geopol_tkg.torch.parity import compare_split

    forecaster = build_forecaster(
        *checkpoint.network(),
        config=checkpoint.config,
        context=build_context(dataset, history, checkpoint.config),
        name=checkpoint.config.model_type,
    )
    contents = file_contents(checkpoint, dataset, time=time)
    queries = sample_queries(dataset, checkpoint.config, num_queries, seed=seed)
    target = output.resolve()  # a link stays
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        candidate = Path(folder) / f"written{SUFFIXES[file_format]}"
        predictor, found = _write_and_reload(contents, candidate, file_format, queries)
        expected = np.asarray(forecaster.at(predictor.time_index)(*queries.T))
        difference = float(np.abs(found - expected).max())
        result: dict[str, Any] = {
            "output": str(output),
            "model_type": checkpoint.config.model_type,
            "num_parameters": parameter_count(predictor.network),
            "max_abs_difference": difference,
            "tolerance": tolerance,
            "passed": difference <= tolerance,
            "format": file_format,
            "card": str(output.with_suffix(".md")),
            "num_queries": num_queries,
        }
        if rank is not None:
            full = compare_split(predictor, forecaster, dataset.facts, rank=rank, tolerance=tolerance)
            learned = {"overlaps_training": True} if checkpoint.learned_from(dataset.facts_of("test")) else {}
            result |= {"full": full | learned, "passed": result["passed"] and full["passed"]}
        if result["passed"]:
            card = model_card(contents, result, output.name)
            os.replace(candidate, target)
            with replace_file(Path(result["card"])) as file:
                file.write(card.encode())
    return result


def torch_state(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A checkpoint's arrays under the names, and in the axis order, of the torch network's state_dict."""
    state: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        renamed, rearrange = (leaf, _same) if "time_encoding" in parents else _LEAVES[leaf]
        state[".".join([*parents, renamed])] = rearrange(array)
        if renamed == "running_mean":
            state[".".join([*parents, "num_batches_tracked"])] = np.array(0)
    return state


def file_contents(checkpoint: Checkpoint, dataset: Dataset, *, time: int | None = None) -> dict[str, Any]:
    """What the file holds, with NumPy arrays where it has tensors."""
    from geopol_tkg.torch.facts import KnownFacts, snapshots_kept
    from geopol_tkg.torch.files import FORMAT_VERSION

    known = KnownFacts.build(
        dataset.facts,
        num_entities=dataset.num_entities,
        num_relations=dataset.num_relations,
        history_length=snapshots_kept(checkpoint.config),
        time_index=time,
    )
    if known.history_length is None:
        past: dict[str, Any] = {"facts": known.quadruples}
    else:
        past = {"snapshots": list(known.snapshots), "snapshot_times": list(known.snapshot_times)}
    relations = np.bincount(dataset.facts[:, 1], minlength=dataset.num_relations)
    entities = np.bincount(dataset.facts[:, [0, 2]].ravel(), minlength=dataset.num_entities)
    return {
        "format_version": FORMAT_VERSION,
        "model_type": checkpoint.config.model_type,
        "model_config": asdict(checkpoint.config),
        "model_state_dict": torch_state(checkpoint.arrays),
        "entity_to_id": checkpoint.entity_to_id,
        "relation_to_id": checkpoint.relation_to_id,
        "relation_frequency": relations.astype(np.int64),
        "entity_frequency": entities.astype(np.int64),
        "triple_frequency": {"triples": known.triples, "counts": known.counts, "last_seen": known.last_seen},
        "epoch": checkpoint.epoch,
        "metrics": _plain(checkpoint.metrics),
        "temperature": checkpoint.temperature,
        "training": {
            "dataset": {key: value for key, value in checkpoint.dataset.items() if key != "path"},
            "settings": _plain(checkpoint.settings),
        },
        "context": {
            **past,
            "time_index": known.time_index,
            "time": dataset.time_axis.label(known.time_index),
            **asdict(dataset.time_axis),
            "entity_kind": dataset.entity_kind,
            "relation_kind": dataset.relation_kind,
            "dataset": dataset.content_hash,
        },
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The same in numbers of Python, not of NumPy."""
    return json.loads(json.dumps(values, default=lambda number: number.item()))


def sample_queries(dataset: Dataset, config: ModelConfig, count: int, *, seed: int) -> np.ndarray:
    """Subjects and relations in both directions: half from the last snapshots, half drawn at random.

    Returns:
        int32 [count, 2].
    """
    rng = np.random.default_rng(seed)
    recent = dataset.facts[dataset.facts[:, 3] >= dataset.timestamps[-config.history_length :][0]]
    real = rng.choice(with_inverses(recent, dataset.num_relations)[:, :2], count // 2)
    size = (count - count // 2, 2)
    random = rng.integers(0, [dataset.num_entities, 2 * dataset.num_relations], size, dtype=np.int32)
    return np.concatenate([real, random]).astype(np.int32)


def _write_and_reload(
    contents: dict[str, Any], candidate: Path, file_format: FileFormat, queries: np.ndarray
) -> tuple["TKGPredictor", np.ndarray]:
    """Write the file; a predictor of the same contents, and what the file answers to queries [b, 2]: [b, n]."""
    from geopol_tkg.torch import files, program
    from geopol_tkg.torch.predictor import TKGPredictor
    from geopol_tkg.torch.reload import fresh_scores

    tensors = _tensors(contents)
    plain = candidate.with_suffix(".pt")
    with replace_file(plain) as file:
        files.write_pt(tensors, file)
    predictor = TKGPredictor(plain, device="cpu")
    if file_format == "pt":
        return predictor, predictor.log_probabilities(*queries.T)
    with replace_file(candidate) as file:
        if file_format == "safetensors":
            files.write_safetensors(tensors, file)
        else:
            program.write(predictor, contents, file_format, file)
    return predictor, fresh_scores(candidate, queries)


def _tensors(value: Any) -> Any:
    """The same with a tensor of its own storage for each array: what ``weights_only=True`` reads."""
    import torch

    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tensors(item) for item in value]
    return torch.from_numpy(np.array(value, order="C")) if isinstance(value, np.ndarray) else value


def _require_torch() -> None:
    try:
        import torch  # noqa: F401 - the check needs it
    except ImportError as error:
        raise GeopolTkgError("convert needs torch: pip install 'geopol-tkg[torch]'") from error


def _require_fit(checkpoint: Checkpoint, dataset: Dataset, history: HistoryVocabulary | None) -> None:
    if not len(dataset.facts):
        raise DataError("the dataset has no facts that the model knows: nothing to forecast from")
    if (dataset.entity_to_id, dataset.relation_to_id) != (checkpoint.entity_to_id, checkpoint.relation_to_id):
        raise DataError("the dataset's ids are not the checkpoint's: align it first")
    if dataset.time_axis != checkpoint.time_axis:
        raise DataError("the dataset's time axis is not the checkpoint's: align it first")
    if uses_vocabulary(checkpoint.config):
        found, wanted = None if history is None else history.window, checkpoint.config.history_window
        if found != wanted:
            raise DataError(f"history window {found}, network trained with {wanted}")
    for name, array in checkpoint.arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"checkpoint array {name} is not finite: train again")
