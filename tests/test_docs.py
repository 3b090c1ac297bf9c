"""The generated reference is up to date."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_reference_is_what_the_program_says():
    if load("generate_cli").generate() != (DOCS / "reference/cli.md").read_text(encoding="utf-8"):
        pytest.fail("docs/reference/cli.md is stale; write it anew with: python docs/generate_cli.py")
