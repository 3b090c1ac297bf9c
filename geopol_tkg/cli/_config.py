"""Options from a TOML file and from the environment; what the command line says wins."""

import difflib
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from geopol_tkg.errors import UsageError

PREFIX = "GEOPOL_TKG_"
_FILE_VARIABLE = f"{PREFIX}CONFIG"


def defaults(commands: Mapping[str, Any], file: Path | None) -> dict[str, dict[str, Any]]:
    """Values of options by command and parameter: the environment's over the file's.

    A file has a table for each command (``[train]``, ``lr = 0.01``); a variable is called
    ``GEOPOL_TKG_TRAIN_LR``.

    Raises:
        UsageError: the file is unreadable, or it or a variable names a command or option that does not exist.
    """
    found = _from_file(commands, file) if file is not None else {}
    known = {_FILE_VARIABLE}
    for command in commands:
        for flag, name in _options(commands[command]).items():
            variable = _variable(command, flag)
            known.add(variable)
            if value := os.environ.get(variable):
                found.setdefault(command, {})[name] = value
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            mend = f"did you mean {near[0]}?" if near else f"wanted {PREFIX}<COMMAND>_<OPTION>"
            raise UsageError(f"variable {variable} sets no option; {mend}")
    return found


def options_with_origins(context: Any) -> dict[str, dict[str, Any]]:
    """Value and origin of each parameter of the running command: command line, environment, config file, preset,
    default."""
    command, above = context.info_name, (context.parent.default_map or {}).get(context.info_name, {})
    flags = {name: flag for flag, name in _options(context.command).items()}
    found = {}
    for name, value in context.params.items():
        origin = context.get_parameter_source(name).name.lower()
        if origin == "default_map":
            is_variable = bool(os.environ.get(_variable(command, flags[name])))
            origin = "environment" if is_variable else "config file" if name in above else "preset"
        plain = value if value is None or isinstance(value, (bool, int, float)) else str(value)
        found[name] = {"value": plain, "origin": "command line" if origin == "commandline" else origin}
    return found


def given(options: dict[str, dict[str, Any]], names: Iterable[str]) -> list[str]:
    """Which of the options were set, by whatever means."""
    return [name for name in names if options[name]["origin"] != "default"]


def _variable(command: str, flag: str) -> str:
    return PREFIX + f"{command}_{flag}".replace("-", "_").upper()


def _options(command: Any) -> dict[str, str]:
    """Parameter name of each option by flag without dashes."""
    return {_flag(param): param.name for param in command.params if _is_option(param)}


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
    found = {}
    for command, table in content.items():
        _require(command, commands, f"--config {file}: no command")
        if not isinstance(table, dict):
            raise UsageError(f"--config {file}: {command} is a command; wanted a table [{command}] of its options")
        found[command] = named_options(commands[command], table, f"--config {file}: [{command}] has no option")
    return found


def named_options(command: Any, table: dict[str, Any], problem: str) -> dict[str, Any]:
    """Values by parameter of a command, from a table by flag, with dashes or underscores.

    Raises:
        UsageError: the command has no such option, and the message begins with the problem; or a value is empty.
    """
    options = _options(command)
    named = {}
    for key, value in table.items():
        flag = key.replace("_", "-")
        _require(flag, options, problem)
        if value == "":
            raise UsageError(f"{flag} in [{command.name}] is empty; leave it out or give it a value")
        named[options[flag]] = value
    return named


def _require(key: str, known: Mapping[str, Any], problem: str) -> None:
    if key not in known:
        raise UsageError(f"{problem} {key!r}; {nearest(key, known)}")


def nearest(key: str, known: Collection[str]) -> str:
    """What may have been meant by an unknown name."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
