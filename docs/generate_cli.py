"""Writes ``docs/reference/cli.md`` from the program itself: ``python docs/generate_cli.py``."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from geopol_tkg.cli import app

TARGET = Path(__file__).parent / "reference" / "cli.md"
HEAD = """# Command line

Made by `python docs/generate_cli.py` from what `--help` says; do not edit.
"""


def generate() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name=group.name)
    names = group.list_commands(context)
    index = [f"- [`{group.name} {name}`](#geopol-tkg-{name}): {_summary(group.commands[name])}" for name in names]
    sections = [_section(group.commands[name], f"{group.name} {name}") for name in names]
    intro = [_help(group), *_tables(group), "## Commands", "\n".join(index)]
    return "\n\n".join([HEAD.strip(), *intro, *sections]) + "\n"


def _section(command: Any, path: str) -> str:
    arguments = " ".join(_argument_usage(param) for param in command.params if _kind(param) == "argument")
    usage = " ".join(part for part in (path, arguments, "[OPTIONS]") if part)
    return "\n\n".join([f"## {path}", f"```\n{usage}\n```", _help(command), *_tables(command)])


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help)


def _summary(command: Any) -> str:
    return _help(command).split("\n\n")[0].replace("\n", " ")


def _argument_usage(param: Any) -> str:
    name = _argument_name(param)
    return name if param.required else f"[{name}]"


def _argument_name(param: Any) -> str:
    name = param.metavar or param.name.upper()
    return name if param.nargs == 1 or name.endswith("...") else f"{name}..."


def _tables(command: Any) -> Iterator[str]:
    """Arguments first, then options by panel in the order of their first option, the rest last."""
    arguments = [param for param in command.params if _kind(param) == "argument"]
    if arguments:
        yield _table("argument", [_row(f"`{_argument_name(param)}`", param) for param in arguments])
    values = _values(command)
    options = [param for param in command.params if _kind(param) == "option" and param.name != "help"]
    panels = list(dict.fromkeys(param.rich_help_panel or "" for param in options))
    for panel in sorted(panels, key=lambda name: not name):
        rows = [_row(_flags(p, values[p.name]), p) for p in options if (p.rich_help_panel or "") == panel]
        yield (f"**{panel}**\n\n" if panel else "") + _table("option", rows)


def _table(what: str, rows: list[str]) -> str:
    return "\n".join([f"| {what} | default | |", "|---|---|---|", *rows])


def _row(name: str, param: Any) -> str:
    return f"| {name} | {_default(param)} | {_text(param)} |"


def _kind(param: Any) -> str:
    return param.param_type_name


def _flags(param: Any, value: str) -> str:
    long = [flag for flag in param.opts if flag.startswith("--")]
    short = [flag for flag in param.opts if not flag.startswith("--")]
    shown = "/".join([*long, *param.secondary_opts])
    return ", ".join(f"`{flag}`" for flag in [shown if param.is_flag else f"{shown} {value}", *short])


def _values(command: Any) -> dict[str, str]:
    """What stands for the value of each parameter, from the annotations of the command's function."""
    hints = get_type_hints(inspect.unwrap(command.callback))
    return {name: _value(hint) for name, hint in hints.items()}


def _value(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "\\|".join(get_args(hint))
    types = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(types[0], "TEXT")


def _text(param: Any) -> str:
    """Help without the default that stands in it."""
    return _escape(re.sub(r"\s*\(default: .*\)$", "", param.help))


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _default(param: Any) -> str:
    """The value, or the words of the help text where the value says nothing."""
    said = re.search(r"\(default: (.*)\)$", param.help)
    if said:
        return _escape(said[1])
    if param.required:
        return "required"
    if param.default is None or param.default is False:
        return ""
    return f"`{param.default}`"


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
    print(f"{TARGET}: written")
