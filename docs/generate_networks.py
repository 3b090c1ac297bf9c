"""Writes ``docs/reference/networks.md`` from the networks themselves: ``python docs/generate_networks.py``."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from geopol_tkg.config import ModelConfig
from geopol_tkg.models.network import build_network

TARGET = Path(__file__).parent / "reference" / "networks.md"
HEAD = """# The networks' arrays

Made by `python docs/generate_networks.py` from the networks; do not edit.

These are the names in a checkpoint's `.npz`. Arrays are float32 unless the table says otherwise. A product is
`row @ weight`: the last axis of a weight is its output.

| sign | meaning | ICEWS14s |
|---|---|---|
| `N` | entities | 7,128 |
| `2R` | relations and their inverses | 460 |
| `d` | `embedding_dim` | 200 |
| `c` | `num_channels` of a decoder | 50 |
| `w` | `kernel_width` of a decoder | 3 |
| `W` | words of the static graph | 3,499 |
| `E` | edges of the static graph | 11,349 |

`layers/*` stands for `layers/0` to `layers/<num_layers - 1>`, two of them below. `*_decoder` stands for
`entity_decoder` and `relation_decoder` in RE-GCN, and for both with `raw_` and with `history_` in front in TiRGN.

The three `d` columns of a recurrent unit are its reset, update and new gates. `linear_weight` begins with the position,
then the channel. Each row of `block_weight` holds `d / 2` matrices of 2×2; rows 0 to 2 are of entity to word (`isA`,
`country`, a label that is its own word), rows 3 to 5 of word to entity. With the static graph the evolution starts from
what the words say of an entity, so `entity_embedding` and rows 0 to 2 of `block_weight` move no score and get a zero
gradient, as published; they count all the same.

Xavier normal is a normal distribution of variance `2 / (rows + columns)`. Xavier uniform with gain √2 is
`U(±√(12 / (rows + columns)))`. `inputs` are the input channels of a decoder: 2 in RE-GCN, 4 in TiRGN."""
TITLES = {"regcn": "RE-GCN", "tirgn": "TiRGN"}
ICEWS14S = ModelConfig(num_entities=7128, num_relations=230)
ICEWS14S_WORDS = {"num_words": 3499, "num_static_edges": 11_349}
# any sizes that differ from one another, so that a size tells what it is the size of
_SYMBOLIC = ModelConfig(
    num_entities=1009,
    num_relations=101,
    embedding_dim=40,
    num_channels=7,
    kernel_width=5,
    num_words=503,
    num_static_edges=601,
)
_SIGNS = {1009: "N", 202: "2R", 40: "d", 80: "2d", 120: "3d", 7: "c", 5: "w", 503: "W", 601: "E"}
INITIAL = {
    r"(entity_embedding|time_encoding/.*)$": "N(0, 1)",
    r"(relation|word)_embedding$": "Xavier normal",
    r"(message|loop|isolated|gate|block)_weight$": "Xavier uniform, gain √2",
    r"_gru/": "U(±1/√d)",
    r"/mix_": "U(±1/√2)",
    r"_decoder/conv_(weight|bias)$": "U(±1/√(inputs·w))",
    r"_decoder/linear_": "U(±1/√(c·d))",
    r"(gate_bias|norm/bias|norm/mean)$": "0",
    r"norm/(scale|var)$": "1",
    r"static/edges$": "the labels' edges, int32",
}


def arrays(config: ModelConfig, *kinds: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a network; of some kinds of variables if any are named."""
    network = nnx.eval_shape(lambda: build_network(config, key=jax.random.key(0)))
    leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(network, *kinds)))
    return {"/".join(str(entry.key) for entry in path): leaf.shape for path, leaf in leaves}


def pooled(name: str) -> str:
    """The name that a table shows for it: without the number of the layer and the kind of decoder."""
    return re.sub(
        r"^(raw_|history_)?(entity|relation)_decoder/", "*_decoder/", re.sub(r"layers/\d+/", "layers/*/", name)
    )


def initial_value(name: str) -> str:
    (text,) = (text for pattern, text in INITIAL.items() if re.search(pattern, name))
    return text


def generate() -> str:
    """The whole page."""
    return "\n\n".join([HEAD, *(_section(model_type, title) for model_type, title in TITLES.items())]) + "\n"


def _section(model_type: str, title: str) -> str:
    config = replace(ICEWS14S, model_type=model_type, **ICEWS14S_WORDS)
    total = sum(map(math.prod, arrays(config, nnx.Param).values()))
    without = sum(map(math.prod, arrays(replace(config, num_words=0), nnx.Param).values()))
    parts = [
        f"## {title}",
        f"{total:,} parameters on ICEWS14s, {without:,} without the static graph.",
        _table("parameter", model_type, nnx.Param),
        "Besides, what a checkpoint holds and no gradient moves:",
        _table("array", model_type, nnx.Not(nnx.Param)),
    ]
    return "\n\n".join(parts)


def _table(what: str, model_type: str, kind: Any) -> str:
    head = [f"| {what} | shape | initial value | arrays | numbers on ICEWS14s |", "|---|---|---|---|---|"]
    return "\n".join([*head, *_rows(model_type, kind)])


def _rows(model_type: str, kind: Any) -> Iterator[str]:
    shapes = arrays(replace(_SYMBOLIC, model_type=model_type), kind)
    counted = arrays(replace(ICEWS14S, model_type=model_type, **ICEWS14S_WORDS), kind)
    for row in dict.fromkeys(map(pooled, shapes)):
        names = [name for name in shapes if pooled(name) == row]
        (shape,) = {shapes[name] for name in names}
        numbers = sum(math.prod(counted[name]) for name in names)
        yield f"| `{row}` | {_symbols(shape)} | {initial_value(row)} | {len(names)} | {numbers:,} |"


def _symbols(shape: tuple[int, ...]) -> str:
    return " × ".join(_SIGNS.get(size, str(size)) for size in shape)


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
    print(f"{TARGET}: written")
