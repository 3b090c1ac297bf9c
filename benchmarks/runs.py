"""A training run opened for measurement: its compiled steps one at a time, their cost and their memory."""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from counting import Operation, matmul_flops, profile, time_shares
from measure import best_rate, peak_rss, restart_peak_rss, timed
from settings import model_config, train_config

from geopol_tkg.checkpoint import flatten
from geopol_tkg.convert import torch_state
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.history import load_or_build
from geopol_tkg.models.forecaster import NetworkForecaster
from geopol_tkg.training.run import RunFiles, TrainingRun
from geopol_tkg.training.step import initial_state

_PARTS = ("evolution", "decoders", "scores", "optimiser")  # named by jax.named_scope
_IN_PRODUCTS = ", products"
_RATE_SIZE = {"cpu": 2048, "gpu": 8192}


def _part_of(operation: Operation) -> str:
    part = next((part for part in _PARTS if part in operation.scopes), "rest")
    return part + (_IN_PRODUCTS if operation.has_product else ", other")


def open_run(dataset: Dataset, settings: dict[str, Any], folder: Path) -> TrainingRun:
    """A training run without validation, whose files go to a folder."""
    sizes = {"num_entities": dataset.num_entities, "num_relations": dataset.num_relations}
    model = model_config(settings, **sizes)
    history, _ = load_or_build(dataset, window=model.history_window)
    files = RunFiles(folder, folder / "runs", model.model_type)
    return TrainingRun(
        dataset, history, model=model, config=train_config(settings), files=files, validate=_never_validate
    )


def _never_validate(forecaster: NetworkForecaster) -> NoReturn:
    raise AssertionError(f"{forecaster.name}: benchmarks of training do not validate")


def matmul_rate(device: jax.Device) -> float:
    """Floating-point operations per second of a float32 matrix product on the default device; no TF32."""
    size = _RATE_SIZE[device.platform]
    matrix = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(partial(jnp.matmul, precision="highest"))
    return best_rate(lambda: multiply(matrix, matrix).block_until_ready(), size)


def peak_memory(device: jax.Device) -> dict[str, int]:
    """Highest bytes so far of this process, and of the device where it counts them."""
    statistics = device.memory_stats() or {}
    on_device = {"peak_device_bytes": statistics["peak_bytes_in_use"]} if statistics else {}
    return {"peak_rss_bytes": peak_rss()} | on_device


@dataclass(frozen=True)
class Program:
    """The compiled step of one shape.

    Attributes:
        compile_seconds: to trace, lower and compile it.
        xla_flops: of all its operations by XLA's count, which takes the body of a loop once.
    """

    compiled: Any
    compile_seconds: float
    xla_flops: float

    def memory(self) -> dict[str, int]:
        """Bytes by the compiler's plan; ``peak`` counts donated arguments once."""
        plan = self.compiled.memory_analysis()
        arguments, outputs = plan.argument_size_in_bytes, plan.output_size_in_bytes
        return {
            "arguments": arguments,
            "outputs": outputs,
            "temporary": plan.temp_size_in_bytes,
            "peak": arguments + outputs + plan.temp_size_in_bytes - plan.alias_size_in_bytes,
        }


class Steps:
    """Optimiser steps of a run, as its training loop takes them, each waited for."""

    def __init__(self, run: TrainingRun) -> None:
        self.plan = run.plan
        self.device = run.device
        self._trainer = run._trainer
        self._state = run._state
        self._data = run._data
        self._key = jax.random.key(run.config.seed)
        self._programs: dict[int, Program] = {}
        self._flops: dict[tuple[int, ...], int] = {}  # by shape and number of blocks of each task
        self._loss = math.nan

    def rate(self) -> float:
        return matmul_rate(self.device)

    def loss(self) -> float:
        """Of the last step, before its update."""
        return self._loss

    def program(self, number: int) -> Program:
        """The program of the plan's shape with this number, compiled on first use."""
        if number not in self._programs:
            started = time.perf_counter()
            traced = self._trace(number)
            compiled = traced.lower().compile()
            seconds = time.perf_counter() - started
            xla_flops = (compiled.cost_analysis() or {}).get("flops", 0.0)
            self._programs[number] = Program(compiled, seconds, xla_flops)
        return self._programs[number]

    def matmul_flops(self, index: int) -> int:
        """Of the matrix products in step ``index``, padding of its blocks included; compiles nothing."""
        number = int(self.plan.shape_of[index])
        shape = self.plan.shapes[number]
        blocks = {
            task: math.ceil(getattr(self.plan, task).counts[index] * padded.blocks / padded.queries)
            for task, padded in (("entity", shape.entity), ("relation", shape.relation))
        }
        key = (number, *blocks.values())
        if key not in self._flops:
            self._flops[key] = matmul_flops(
                self._trace(number).jaxpr,
                trip_count=lambda scopes: blocks["relation" if "relation_task" in scopes else "entity"],
            )
        return self._flops[key]

    def _trace(self, number: int) -> Any:
        index = int(np.flatnonzero(self.plan.shape_of == number)[0])
        return self._trainer.step.trace(self._trainer, *self._arguments(index), shape=self.plan.shapes[number])

    def _arguments(self, index: int) -> tuple[Any, ...]:
        """Of the step at the start of an epoch that begins with plan step ``index``."""
        return self._state, self._data, jnp.full(len(self.plan), index, jnp.int32), self._key

    def take(self, index: int) -> float:
        """Take step ``index`` of the plan; its seconds."""
        program = self.program(int(self.plan.shape_of[index]))
        arguments = self._arguments(index)

        def take() -> None:
            self._state = jax.block_until_ready(program.compiled(*arguments))

        seconds = timed(take)
        state = self._state
        self._loss = float(state.loss_sum) / int(state.query_count)
        self._state = initial_state(state.parameters, state.statistics, state.optimiser, step=state.step)
        return seconds

    def time_shares(self, index: int) -> dict[str, Any]:
        """Where the time of step ``index``'s operations goes; takes the step.

        Returns:
            ``matmul_time_share``, of operations with a matrix product; ``part_time_shares``, of each part of
            the step, in products and in all else. Nones where the profiler sees no operation.
        """
        program = self.program(int(self.plan.shape_of[index]))
        operations = profile(program.compiled, lambda: self.take(index))
        shares = time_shares(operations, _part_of)
        products = sum(share for part, share in shares.items() if part.endswith(_IN_PRODUCTS))
        return {"matmul_time_share": products if shares else None, "part_time_shares": shares or None}

    def memory(self) -> dict[str, int]:
        return peak_memory(self.device)

    def restart_memory(self) -> int:
        return restart_peak_rss()


class DatasetSteps(Steps):
    """The steps of a dataset directory, to be asked from another process; float32 is no TF32 here."""

    def __init__(self, dataset: str, settings: dict[str, Any], folder: str) -> None:
        if jax.default_backend() == "gpu":
            jax.config.update("jax_default_matmul_precision", "highest")
        self._run = open_run(Dataset.load(Path(dataset)), settings, Path(folder))
        super().__init__(self._run)

    def asked(self) -> dict[str, int]:
        """Queries of an epoch, and how many are distinct in their step and task."""
        plan = self.plan
        distinct = {"entity": len(plan.entity.pairs), "relation": len(plan.relation.pairs)}
        return {"queries": len(plan.queries), **{f"distinct_{task}_queries": count for task, count in distinct.items()}}

    def plan_shapes(self) -> list[int]:
        """Number of the shape that each step of an epoch takes."""
        return self.plan.shape_of.tolist()

    def export(self, path: str) -> dict[str, Any]:
        """Write what the yardstick reads; the rest of what it is made with."""
        weights = torch_state(flatten(self._state.parameters) | flatten(self._state.statistics))
        plan = {name: getattr(self.plan, name) for name in ("queries", "starts", "counts", "times")}
        np.savez(path, **plan, **{f"weights/{name}": array for name, array in weights.items()})
        return {"model": asdict(self._run.model), "config": asdict(self._run.config), "device": self.device.platform}

    def compile_all(self) -> list[dict[str, Any]]:
        """Compile every shape; what each costs, and how many steps of an epoch take it."""
        rows = []
        for number, shape in enumerate(self.plan.shapes):
            program = self.program(number)
            rows.append(
                {
                    "steps": int((self.plan.shape_of == number).sum()),
                    "queries": shape.queries,
                    "compile_seconds": program.compile_seconds,
                    "xla_flops": program.xla_flops,
                    "memory": program.memory(),
                }
            )
        return rows

    def device_kind(self) -> str:
        return self.device.device_kind
