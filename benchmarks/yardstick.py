"""The yardstick: a plain eager PyTorch training step of the same network, one message per edge.

What a user of the published code does, on the torch modules of this package: the window's snapshots become
tensors at every step, TiRGN's history masks are rows of a scipy matrix made dense, both tasks' likelihoods,
gradients clipped, torch's Adam. It needs no jax.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import best_rate, peak_rss, restart_peak_rss, timed
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import nll_loss
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from geopol_tkg.config import ModelConfig, TrainConfig
from geopol_tkg.data.dataset import Dataset, with_inverses
from geopol_tkg.torch.modules import Queries, build_network

_PRODUCT = re.compile(r"aten::(\w*mm|\w*convolution\w*|linear\w*)")
_RATE_SIZE = {"cpu": 2048, "cuda": 8192}


class DenseHistory:
    """What was seen before one time, as sparse 0/1 matrices whose rows a step looks up and makes dense.

    Rows are the keys that occur, not all possible ones as in the published files.
    """

    def __init__(self, facts: np.ndarray, *, num_entities: int, num_relations: int) -> None:
        """Take the visible facts [f, 4], without inverses."""
        subject, relation, object_, _ = with_inverses(facts, num_relations).astype(np.int64).T
        self._num_entities, self._num_relations = num_entities, num_relations
        self._objects = _Rows(subject * 2 * num_relations + relation, object_, num_entities)
        self._relations = _Rows(subject * num_entities + object_, relation, 2 * num_relations)

    def masks(self, queries: np.ndarray) -> tuple[Tensor, Tensor]:
        """Objects seen for each ``(s, r)``, relations seen for each ``(s, o)``: bool [b, n], [b, r2]."""
        subject, relation, object_ = queries.astype(np.int64).T
        return (
            self._objects.dense(subject * 2 * self._num_relations + relation),
            self._relations.dense(subject * self._num_entities + object_),
        )


class _Rows:
    def __init__(self, keys: np.ndarray, targets: np.ndarray, width: int) -> None:
        self._keys, row = np.unique(keys, return_inverse=True)
        pairs = np.unique(np.stack([row + 1, targets]), axis=1)
        shape = (len(self._keys) + 1, width)  # row 0 is that of keys which do not occur
        self._matrix = csr_matrix((np.ones(pairs.shape[1], bool), tuple(pairs)), shape=shape)

    def dense(self, keys: np.ndarray) -> Tensor:
        place = np.searchsorted(self._keys, keys)
        found = np.append(self._keys, -1)[place] == keys
        return torch.from_numpy(self._matrix[np.where(found, place + 1, 0)].toarray())


class EagerSteps:
    """Training steps of a network that takes its weights, and its queries, from a file.

    Args:
        dataset: directory.
        model, config: settings of the network and its training, as in the JAX run.
        steps: .npz with the plan's ``queries, starts, counts, times`` and the weights under
            ``weights/<name in torch>``.
        device: where jax computes, "cpu" or "gpu".
    """

    def __init__(self, dataset: str, model: dict[str, Any], config: dict[str, Any], steps: str, device: str) -> None:
        if device == "gpu" and not torch.cuda.is_available():
            raise SystemExit("jax uses a GPU, torch sees none: install a CUDA build of torch or use --device cpu")
        self.device = torch.device("cuda" if device == "gpu" else "cpu")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        self._dataset = Dataset.load(Path(dataset))
        self._model, self._config = ModelConfig(**model), TrainConfig(**config)
        torch.manual_seed(self._config.seed)
        self._steps, weights = _read(Path(steps))
        self._network = build_network(self._model).to(self.device).train()
        self._network.load_state_dict(weights)
        self._optimiser = torch.optim.Adam(
            self._network.parameters(), lr=self._config.lr, weight_decay=self._config.weight_decay
        )
        self._history: tuple[int, DenseHistory] | None = None
        self._loss = torch.zeros(())

    def rate(self) -> float:
        """Floating-point operations per second of a float32 matrix product on the device."""
        size = _RATE_SIZE[self.device.type]
        matrix = torch.ones(size, size, device=self.device)
        return best_rate(lambda: self._finish(torch.mm(matrix, matrix)), size)

    def take(self, index: int) -> float:
        """Take step ``index`` of the plan; its seconds. The history matrices are at hand, as on disk."""
        self._prepare_history(int(self._steps["times"][index]))
        return timed(lambda: self._finish(self._step(index)))

    def loss(self) -> float:
        """Of the last step, before its update."""
        return self._loss.item()

    def matmul_flops(self, index: int) -> int:
        """Of the matrix products and convolutions of step ``index``, counted while it is taken."""
        with FlopCounterMode(display=False) as counter:
            self.take(index)
        return counter.get_total_flops()

    def time_shares(self, index: int) -> dict[str, float]:
        """``matmul_time_share`` of step ``index``: in matrix products and convolutions; takes the step."""
        on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
        with profile(activities=activities) as found:
            self.take(index)
        field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        times = {event.key: getattr(event, field) for event in found.key_averages() if event.key.startswith("aten::")}
        products = sum(time for name, time in times.items() if _PRODUCT.fullmatch(name))
        return {"matmul_time_share": products / sum(times.values())}

    def memory(self) -> dict[str, int]:
        """Peak bytes of this process, and of the device's allocator."""
        device = {"peak_device_bytes": torch.cuda.max_memory_allocated()} if self.device.type == "cuda" else {}
        return {"peak_rss_bytes": peak_rss()} | device

    def restart_memory(self) -> int:
        return restart_peak_rss()

    def threads(self) -> int:
        return torch.get_num_threads()

    def _finish(self, _: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _step(self, index: int) -> Tensor:
        self._optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            self._loss = self._likelihood(index)
        self._loss.backward()
        if self._config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._config.grad_clip)
        self._optimiser.step()
        return self._loss

    def _likelihood(self, index: int) -> Tensor:
        """Weighted negative log-likelihood of both tasks."""
        start, count, time = (int(self._steps[name][index]) for name in ("starts", "counts", "times"))
        queries = self._steps["queries"][start : start + count]
        objects_seen, relations_seen = self._masks(queries)
        subject, relation, object_ = torch.from_numpy(queries).long().to(self.device).unbind(1)
        evolved = self._network.encoder(self._window(time))
        entity = self._network.entity_log_probabilities(evolved, Queries(subject, relation, time, objects_seen))
        other = self._network.relation_log_probabilities(evolved, Queries(subject, object_, time, relations_seen))
        weight = self._config.task_weight
        return weight * nll_loss(entity, object_) + (1 - weight) * nll_loss(other, relation)

    def _window(self, time: int) -> list[Tensor]:
        """The snapshots before a time as tensors, built anew."""
        times, stamps = self._dataset.facts[:, 3], self._dataset.timestamps
        snapshots = []
        for stamp in stamps[stamps < time][-self._model.history_length :]:
            low, high = np.searchsorted(times, [stamp, stamp + 1])
            snapshots.append(torch.from_numpy(self._dataset.facts[low:high, :3].copy()).long().to(self.device))
        return snapshots

    def _masks(self, queries: np.ndarray) -> tuple[Tensor | None, Tensor | None]:
        if self._history is None:
            return None, None
        objects, relations = self._history[1].masks(queries)
        return objects.to(self.device), relations.to(self.device)

    def _prepare_history(self, time: int) -> None:
        if self._model.model_type == "regcn" or (self._history is not None and self._history[0] == time):
            return
        facts, window = self._dataset.facts, self._model.history_window
        visible = (facts[:, 3] < time) & ((facts[:, 3] >= time - window) if window else True)
        sizes = {"num_entities": self._model.num_entities, "num_relations": self._model.num_relations}
        self._history = time, DenseHistory(facts[visible], **sizes)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """The plan's arrays and the weights."""
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    weights = {
        name.removeprefix("weights/"): torch.from_numpy(content.pop(name)) for name in list(content) if "/" in name
    }
    return content, weights
