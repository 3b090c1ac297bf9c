"""The generated reference is up to date, and the tests that documents name exist."""

import importlib.util
import re
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


def test_tests_that_documents_name_exist():
    root = DOCS.parent
    defined = {"test_start", "test_start_time"}  # fields
    for path in (root / "tests").rglob("test_*.py"):
        defined |= {path.stem, *re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))}
    for page in [root / "README.md", *(root / "benchmarks").glob("*.md"), *DOCS.rglob("*.md")]:
        named = set(re.findall(r"\btest_\w+", page.read_text(encoding="utf-8")))
        assert named <= defined, page
