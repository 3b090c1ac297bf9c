"""A converted network on disk."""

import pytest
from small_world import make_checkpoint, make_config, make_dataset, random_arrays

from geopol_tkg.data.history import build_for


@pytest.fixture(scope="session")
def dataset():
    return make_dataset()


@pytest.fixture(scope="session")
def pt_file(tmp_path_factory, dataset):
    """TiRGN with random weights, as ``convert`` writes it."""
    pytest.importorskip("torch")
    from geopol_tkg.convert import convert

    config = make_config()
    checkpoint = make_checkpoint(config, dataset, random_arrays(config))
    path = tmp_path_factory.mktemp("converted") / "tirgn_trained.pt"
    history = build_for(dataset, window=config.history_window)
    assert convert(checkpoint, dataset, history, output=path)["passed"]
    return path
