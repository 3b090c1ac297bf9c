"""Published settings: the TOML files of ``geopol_tkg/presets``, one for each model and dataset."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import typer

from geopol_tkg.cli._config import named_options, nearest
from geopol_tkg.errors import UsageError

FOLDER = resources.files("geopol_tkg") / "presets"


@dataclass(frozen=True)
class Preset:
    """A file with a table ``about``, for people, and a table ``train``, of options as ``--config`` has them."""

    name: str
    text: str
    about: dict[str, Any]
    train: dict[str, Any]


def preset_names() -> list[str]:
    """In the order of the alphabet."""
    return sorted(file.name.removesuffix(".toml") for file in FOLDER.iterdir() if file.name.endswith(".toml"))


def load_preset(name: str) -> Preset:
    """Read a preset.

    Raises:
        UsageError: there is none of this name.
    """
    known = preset_names()
    if name not in known:
        raise UsageError(f"no preset {name!r}; {nearest(name, known)} (geopol-tkg presets lists them)")
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    return Preset(name, text, **tomllib.loads(text))


def take_preset(context: typer.Context, name: str | None) -> str | None:
    """Callback of ``--preset``, eager: its values become defaults, below those of the file and the environment."""
    if name is not None:
        values = named_options(context.command, load_preset(name).train, f"preset {name}: train has no option")
        context.default_map = {**values, **(context.default_map or {})}
    return name
