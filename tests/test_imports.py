"""The direction of imports, as the architecture has it."""

import ast
from pathlib import Path

import pytest

import geopol_tkg

ROOT = Path(geopol_tkg.__file__).parent
LAYERS = {  # what a part may import besides itself
    "cli": {"report", "doctor", "training", "evaluation", "convert", "forecasts", "checkpoint", "models", "data"}
    | {"config", "errors"},
    "report": {"evaluation", "forecasts", "checkpoint", "models", "data", "config", "errors"},
    "doctor": {"training", "models", "data", "config", "errors"},
    "convert": {"torch", "checkpoint", "models", "data", "config", "errors"},
    "forecasts": {"explain", "checkpoint", "models", "data", "config", "errors"},
    "explain": {"data", "config", "errors"},
    "training": {"checkpoint", "models", "data", "config", "errors"},
    "evaluation": {"models", "data", "config", "errors"},
    "checkpoint": {"models", "data", "config", "errors"},
    "models": {"data", "config", "errors"},
    "torch": {"config", "errors"},
    "data": {"config", "errors"},
    "config": set(),
    "errors": set(),
    "__init__": set(),
    "__main__": {"cli", "huge_pages"},
    "huge_pages": set(),
}
JAX = {"jax", "flax", "optax", "jaxlib"}


def modules(part):
    return sorted((ROOT / part).rglob("*.py")) if (ROOT / part).is_dir() else [ROOT / f"{part}.py"]


def imported(path):
    """Dotted names that a file imports, those inside functions too, but not those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path):
    return {name.partition(".")[0] for name in imported(path)}


def test_every_part_has_a_layer():
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts == set(LAYERS)


@pytest.mark.parametrize("part", LAYERS)
def test_imports_point_down(part):
    for path in modules(part):
        own = {name.split(".")[1] for name in imported(path) if name.startswith("geopol_tkg.")}
        allowed = LAYERS[part] | {part} | ({"__version__"} if part == "cli" else set())
        assert own <= allowed, path


@pytest.mark.parametrize("part", ["data", "torch", "config", "errors", "cli"])
def test_no_jax_in(part):
    for path in modules(part):
        found = packages(path) & JAX
        assert not found or path.name == "_options.py", path  # the one that looks for a GPU


def test_ranking_imports_no_jax_and_does_no_input_or_output():
    assert packages(ROOT / "evaluation/ranking.py") == {"typing", "numpy"}


def test_models_import_no_pandas():
    assert not [path for path in modules("models") if "pandas" in packages(path)]


def test_the_commands_import_nothing_heavy_at_the_top():
    light = {"typer", "geopol_tkg"}
    for path in modules("cli"):
        if path.name in ("_models.py", "_training.py", "_sources.py"):  # imported inside functions
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in top}
        inside = {name for name in names if name.startswith("geopol_tkg")}
        assert all(name.split(".")[1] in ("cli", "config", "errors") for name in inside), path
        assert not {name.partition(".")[0] for name in names} & (JAX | {"numpy", "pandas", "pyarrow", "torch", "rich"})
        assert light


def test_click_is_never_imported():
    assert not [path for path in ROOT.rglob("*.py") if "click" in packages(path)]
