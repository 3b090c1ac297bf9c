"""Fixtures that several folders of tests use."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # make test-gpu asks for a GPU besides

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import program, trained, world  # noqa: F401 - fixtures
from hypothesis import settings

from geopol_tkg.data.events import mock_events

# What XLA would optimise on a CPU takes longer than the tests; programs that tests start inherit the flag. XLA dies of
# a flag that it does not know: it has this one in jax 0.10, and no more in 0.11.2.
if os.environ["JAX_PLATFORMS"] == "cpu" and jax.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
if jax.default_backend() == "cpu":
    jax.config.update("jax_disable_most_optimizations", True)

settings.register_profile("any machine", deadline=None)  # a case may wait for the other worker
settings.load_profile("any machine")

_MAPS, _MANY_MAPS = Path("/proc/self/maps"), 25_000


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


@pytest.fixture(autouse=True, scope="session")
def shared_programs(request: pytest.FixtureRequest) -> None:
    """Compiled programs are kept where those that tests start keep theirs."""
    jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("compiled") / "geopol-tkg" / "jax"))
    jax.config.update("jax_compilation_cache_max_size", 1 << 30)  # as theirs: with a limit, a cache keeps more files
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Let compiled programs go before there are too many.

    Each holds memory maps, of which Linux gives a process 65,530 (``vm.max_map_count``). XLA dies of a segmentation
    fault when none is left, and a whole run of the tests compiles that many.
    """
    yield
    if not _MAPS.is_file() or len(_MAPS.read_text().splitlines()) > _MANY_MAPS:
        jax.clear_caches()
