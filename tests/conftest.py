"""Fixtures that several folders of tests use."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import program, trained, world  # noqa: F401 - fixtures

from geopol_tkg.data.events import mock_events


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real GDELT files and benchmarks beside the repository, where they are at hand."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no shared/data beside the repository: real files are not at hand")
    return path


@pytest.fixture
def events() -> pa.Table:
    """A day of mock events."""
    return mock_events()


@pytest.fixture
def event_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a mock parquet file with the arguments of ``mock_events``; gives its path."""

    def write(name: str = "events.parquet", **arguments: int) -> Path:
        path = tmp_path / name
        pq.write_table(mock_events(**arguments), path)
        return path

    return write


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Let a module's compiled programs go.

    Each holds memory maps, of which Linux gives a process 65,530 (``vm.max_map_count``). XLA dies of a segmentation
    fault when none is left, and a whole run of the tests compiles that many.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """What XLA would optimise takes longer than the tests."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
