"""What a forecast from a .pt costs: ``python benchmarks/predictor.py [FILE.pt]``; JSON on stdout.

Without a file: a network with random weights of the size that ICEWS14s has (7,128 entities, 230 relations,
d 200), with random facts. What is measured does not depend on the values.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from geopol_tkg.config import ModelConfig, ModelType
from geopol_tkg.torch import TKGPredictor
from geopol_tkg.torch.facts import KnownFacts
from geopol_tkg.torch.files import FORMAT_VERSION, write_pt
from geopol_tkg.torch.modules import build_network

SIZES = {"num_entities": 7128, "num_relations": 230}
TRIPLES, SNAPSHOT, LAST = 300_000, 700, 2_000  # distinct facts in all, facts of a timestamp, last time index
LOAD = """
import json, sys, time
import numpy, torch, geopol_tkg.torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before, start = resident(), time.perf_counter()
predictor = geopol_tkg.torch.TKGPredictor(sys.argv[1], device="cpu")
loaded, after = time.perf_counter(), resident()
predictor.predict(next(iter(predictor.entity_to_id)), next(iter(predictor.relation_to_id)))
print(json.dumps({"load_seconds": loaded - start, "first_forecast_seconds": time.perf_counter() - loaded,
                  "resident_growth_at_load": after - before, "resident_growth_with_forecast": resident() - before}))
"""


def write_random(model_type: ModelType, path: Path) -> None:
    """A file of random weights and facts."""
    config = ModelConfig(model_type=model_type, **SIZES)
    rng = np.random.default_rng(0)
    limits = [config.num_entities, config.num_relations, config.num_entities, LAST]
    facts = rng.integers(0, limits, (TRIPLES, 4))
    recent = rng.integers(0, [*limits[:3], 1], (SNAPSHOT * config.history_length, 4))
    recent[:, 3] = LAST + np.arange(len(recent)) // SNAPSHOT
    known = KnownFacts.build(np.concatenate([facts, recent]), history_length=config.history_length, **SIZES)
    triples = {name: torch.from_numpy(getattr(known, name)) for name in ("triples", "counts", "last_seen")}
    contents = {
        "format_version": FORMAT_VERSION,
        "model_type": model_type,
        "model_config": asdict(config),
        "model_state_dict": build_network(config).state_dict(),
        "entity_to_id": {f"ENTITY {i}": i for i in range(config.num_entities)},
        "relation_to_id": {f"{i:03}": i for i in range(config.num_relations)},
        "triple_frequency": triples,
        "context": {
            "snapshots": [torch.from_numpy(snapshot) for snapshot in known.snapshots],
            "snapshot_times": list(known.snapshot_times),
            "time_index": known.time_index,
            **{"origin": 0, "step": 900, "granularity": "15min"},
        },
    }
    with path.open("wb") as file:
        write_pt(contents, file)


def measure(path: Path, *, repeats: int = 100) -> dict[str, object]:
    """Load time and memory in fresh processes, warm latencies in this one."""
    loads = [json.loads(subprocess.check_output([sys.executable, "-c", LOAD, str(path)])) for _ in range(3)]
    predictor = TKGPredictor(path, device="cpu")
    entities, relations = list(predictor.entity_to_id), list(predictor.relation_to_id)
    rng = np.random.default_rng(0)
    asks = {
        "predict": lambda s, r, o: predictor.predict(s, r),
        "predict_baseline": lambda s, r, o: predictor.predict(s, r, baseline=True),
    }
    if predictor.config.model_type != "counts":  # which forecasts entities only
        asks["predict_relations"] = lambda s, r, o: predictor.predict_relations(s, o)
    latencies = {}
    for name, ask in asks.items():
        seconds = []
        for _ in range(repeats + 5):
            labels = rng.choice(entities), rng.choice(relations), rng.choice(entities)
            start = time.perf_counter()
            ask(*map(str, labels))
            seconds.append(time.perf_counter() - start)
        warm = sorted(seconds[5:])
        latencies[name] = {"min_ms": 1e3 * warm[0], "median_ms": 1e3 * statistics.median(warm)}
    start = time.perf_counter()
    predictor.update(np.array([[0, 0, 1, predictor.time_index]]))
    return {
        "model": predictor.config.model_type,
        "entities": len(entities),
        "triples": len(predictor.facts.triples),
        "file_bytes": path.stat().st_size,
        **{name: statistics.median(load[name] for load in loads) for name in loads[0]},
        "warm": latencies,
        "update_seconds": time.perf_counter() - start,
    }


def main() -> None:
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if len(sys.argv) > 1:
        results = [measure(Path(sys.argv[1]))]
    else:
        results = []
        with tempfile.TemporaryDirectory() as folder:
            for model_type in ("regcn", "tirgn"):
                path = Path(folder) / f"{model_type}_trained.pt"
                write_random(model_type, path)
                results.append(measure(path))
    print(json.dumps({**machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
