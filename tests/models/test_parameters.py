"""Names, shapes, counts and initial values of all arrays, and the page that lists them."""

import importlib.util
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from small_world import make_config

from geopol_tkg.checkpoint import flatten
from geopol_tkg.models.network import build_network

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIGMAS = 5


def load_generator():
    spec = importlib.util.spec_from_file_location("generate_networks", DOCS / "generate_networks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page = load_generator()


def test_the_page_lists_the_networks_as_they_are():
    if page.generate() != page.TARGET.read_text(encoding="utf-8"):
        pytest.fail("docs/reference/networks.md is stale; write it anew with: python docs/generate_networks.py")


@pytest.mark.parametrize(
    ("model_type", "without", "with_words"), [("regcn", 6_161_108, 6_863_308), ("tirgn", 10_366_246, 11_068_446)]
)
def test_parameters_of_icews14s_are_as_many_as_published(model_type, without, with_words):
    config = replace(page.ICEWS14S, model_type=model_type)
    for settings, expected in (({}, without), (page.ICEWS14S_WORDS, with_words)):
        shapes = page.arrays(replace(config, **settings), nnx.Param)
        assert sum(map(math.prod, shapes.values())) == expected


def test_published_counts_of_the_parts_of_regcn():
    shapes = page.arrays(replace(page.ICEWS14S, model_type="regcn", **page.ICEWS14S_WORDS), nnx.Param)
    parts = {
        "encoder/entity_embedding": 1_425_600,
        "encoder/relation_embedding": 92_000,
        "encoder/static/word_embedding": 699_800,
        "encoder/static/block_weight": 2_400,
        "encoder/layers/": 240_000,
        "encoder/relation_gru/": 361_200,
        "encoder/gate_": 40_200,
        "entity_decoder/": 2_001_054,
        "relation_decoder/": 2_001_054,
    }
    found = {part: sum(math.prod(shapes[name]) for name in shapes if name.startswith(part)) for part in parts}
    assert found == parts


def normal(deviation):
    def check(values, name):
        scaled = values / deviation
        check_moments(scaled, name, kurtosis=3)
        assert values.size < 100 or np.abs(scaled).max() > math.sqrt(3), f"{name}: uniform, not normal"

    return check


def uniform(bound):
    def check(values, name):
        assert np.abs(values).max() <= bound, name
        check_moments(values / bound * math.sqrt(3), name, kurtosis=1.8)

    return check


def constant(value):
    def check(values, name):
        assert (values == value).all(), name

    return check


def check_moments(values, name, *, kurtosis):
    """Mean 0 and variance 1, within what so many samples can tell."""
    assert abs(values.mean()) < SIGMAS / math.sqrt(values.size), name
    assert abs(np.square(values).mean() - 1) < SIGMAS * math.sqrt((kurtosis - 1) / values.size), name


def law(text, shape, config):
    """What the page's words for an initial value demand of an array."""
    d, c, w = config.embedding_dim, config.num_channels, config.kernel_width
    inputs = {"regcn": 2, "tirgn": 4}[config.model_type]
    laws = {
        "N(0, 1)": normal(1),
        "Xavier normal": normal(math.sqrt(2 / sum(shape))),
        "Xavier uniform, gain √2": uniform(math.sqrt(12 / sum(shape))),
        "U(±1/√d)": uniform(d**-0.5),
        "U(±1/√2)": uniform(2**-0.5),
        "U(±1/√(inputs·w))": uniform((inputs * w) ** -0.5),
        "U(±1/√(c·d))": uniform((c * d) ** -0.5),
        "0": constant(0),
        "1": constant(1),
        "the labels' edges, int32": constant(0),  # a place for them, until they are put there
    }
    return laws[text]


@pytest.mark.parametrize("model_type", ["regcn", "tirgn"])
def test_initial_values_follow_the_laws_of_the_page(model_type):
    """Many layers, so that the few numbers of each are many together."""
    sizes = {"embedding_dim": 24, "num_channels": 20, "num_layers": 40, "num_words": 50, "num_static_edges": 9}
    config = make_config(model_type, **sizes)
    _, state = nnx.split(build_network(config, key=jax.random.key(5, impl="rbg")))  # compiles faster
    pools = defaultdict(list)
    for name, array in flatten(state).items():
        pools[page.pooled(name)].append(array)
    for name, arrays in pools.items():
        law(page.initial_value(name), arrays[0].shape, config)(np.concatenate(arrays, axis=None), name)
    drawn = [float(array.ravel()[0]) for arrays in pools.values() for array in arrays]
    drawn = [value for value in drawn if value not in (0, 1)]
    assert len(set(drawn)) == len(drawn), "a random key was used twice"
