"""Options from a TOML file and from the environment; what the command line says wins."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geopol_tkg.errors import UsageError

PREFIX = "GEOPOL_TKG_"


def defaults(commands: Mapping[str, Any], file: Path | None) -> dict[str, dict[str, Any]]:
    """Values of options by command and parameter: the environment's over the file's.

    A file has a table for each command (``[train]``, ``lr = 0.01``); a variable is called
    ``GEOPOL_TKG_TRAIN_LR``.

    Raises:
        UsageError: the file is unreadable, or names a command or option that does not exist.
    """
    found = _from_file(commands, file) if file is not None else {}
    for command, options in _options(commands).items():
        for flag, name in options.items():
            variable = PREFIX + f"{command}_{flag}".replace("-", "_").upper()
            if value := os.environ.get(variable):
                found.setdefault(command, {})[name] = value
    return found


def _options(commands: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Parameter name of each option by command and by flag without dashes."""
    return {
        name: {_flag(param): param.name for param in command.params if _is_option(param)}
        for name, command in commands.items()
    }


def _is_option(param: Any) -> bool:
    return param.param_type_name == "option" and param.name != "help"


def _flag(param: Any) -> str:
    return max(param.opts, key=len).removeprefix("--")


def _from_file(commands: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--config {file}: not valid TOML ({error})") from error
    options = _options(commands)
    found = {}
    for command, table in content.items():
        _require(command, options, f"--config {file}: no command")
        if not isinstance(table, dict):
            raise UsageError(f"--config {file}: {command} is a command; wanted a table [{command}] of its options")
        found[command] = _named(table, options[command], f"--config {file}: [{command}] has no option")
    return found


def _named(table: dict[str, Any], options: dict[str, str], problem: str) -> dict[str, Any]:
    named = {}
    for key, value in table.items():
        flag = key.replace("_", "-")
        _require(flag, options, problem)
        named[options[flag]] = value
    return named


def _require(key: str, known: Mapping[str, Any], problem: str) -> None:
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1)
    raise UsageError(f"{problem} {key!r}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"))
