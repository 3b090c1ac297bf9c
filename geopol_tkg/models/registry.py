"""The trained models by their type: how each is built, what it looks at, and what scores with it."""

from typing import Any

from flax import nnx
from jax import Array

from geopol_tkg.config import ModelConfig
from geopol_tkg.data.dataset import Dataset
from geopol_tkg.data.history import HistoryVocabulary
from geopol_tkg.models.count_forecaster import CountContext, CountForecaster
from geopol_tkg.models.counts import CountModel
from geopol_tkg.models.forecaster import ForecastContext, NetworkForecaster
from geopol_tkg.models.network import build_network

Context = ForecastContext | CountContext
TrainedForecaster = NetworkForecaster | CountForecaster


def uses_vocabulary(config: ModelConfig) -> bool:
    """Whether a model looks at the history vocabulary."""
    return config.model_type != "counts"


def build_model(config: ModelConfig, *, key: Array) -> nnx.Module:
    """A freshly initialised model of ``config.model_type``."""
    return CountModel(config, key=key) if config.model_type == "counts" else build_network(config, key=key)


def build_context(dataset: Dataset, history: HistoryVocabulary | None, config: ModelConfig) -> Context:
    """What a model looks at, arranged once; the dataset's ids are the model's.

    Args:
        history: needed where :func:`uses_vocabulary`.

    Raises:
        ValueError: the vocabulary has another window than the model was trained with.
    """
    if config.model_type == "counts":
        return CountContext.build(dataset, config)
    assert history is not None, f"{config.model_type} looks at the history vocabulary"
    return ForecastContext.build(dataset, history, config)


def build_forecaster(
    graphdef: nnx.GraphDef[Any],
    state: Any,
    *,
    config: ModelConfig,
    context: Context,
    name: str,
    horizon: int | None = None,
) -> TrainedForecaster:
    """A model split by ``nnx.split`` as a forecaster; ``horizon`` hides facts from this time index on."""
    forecaster: Any = CountForecaster if isinstance(context, CountContext) else NetworkForecaster
    found: TrainedForecaster = forecaster(graphdef, state, config=config, context=context, name=name, horizon=horizon)
    return found
