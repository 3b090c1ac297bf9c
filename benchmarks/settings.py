"""Options of a training run that is measured. Loads no jax: :func:`measure.choose_machine` comes before it."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from measure import add_machine_options

from geopol_tkg.config import ModelConfig, TrainConfig

PUBLISHED_LENGTH = {"regcn": 3, "tirgn": 9}  # on ICEWS14s


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of the network and its training; :func:`settings_of` gathers them."""
    add_machine_options(parser)
    parser.add_argument("--model", choices=tuple(PUBLISHED_LENGTH), default="tirgn")
    parser.add_argument("--history-length", type=int, help="default: 3 for regcn, 9 for tirgn")
    parser.add_argument("--history-window", type=int, default=0, help="default: all history")
    parser.add_argument("--embedding-dim", type=int, default=ModelConfig.embedding_dim)
    parser.add_argument("--batch-size", type=int, default=0, help="default: a whole timestamp")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--remat", action=argparse.BooleanOptionalAction)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other field of ModelConfig or TrainConfig"
    )


def dataset_directory(text: str) -> Path:
    """Type of an argument that names a dataset directory."""
    if not (Path(text) / "dataset.json").is_file():
        raise argparse.ArgumentTypeError(f"{text}: no dataset here (no dataset.json); run benchmarks/ingest.py first")
    return Path(text)


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of ModelConfig and TrainConfig by name, as JSON can hold them."""
    length = arguments.history_length or PUBLISHED_LENGTH[arguments.model]
    settings = {"model_type": arguments.model, "history_length": length}
    names = ("history_window", "embedding_dim", "batch_size", "precision", "remat", "seed")
    settings |= {name: getattr(arguments, name) for name in names}
    known = {field.name for config in (ModelConfig, TrainConfig) for field in fields(config)}
    for pair in arguments.set:
        name, _, value = pair.partition("=")
        if name not in known:
            raise SystemExit(f"--set {pair}: no field of ModelConfig or TrainConfig is called {name}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def model_config(settings: dict[str, Any], *, num_entities: int, num_relations: int) -> ModelConfig:
    """The network that the settings describe."""
    return ModelConfig(**_given(ModelConfig, settings), num_entities=num_entities, num_relations=num_relations)


def train_config(settings: dict[str, Any]) -> TrainConfig:
    """The training that the settings describe."""
    return TrainConfig(**_given(TrainConfig, settings))


def _given(config_type: type, settings: dict[str, Any]) -> dict[str, Any]:
    return {field.name: settings[field.name] for field in fields(config_type) if field.name in settings}
