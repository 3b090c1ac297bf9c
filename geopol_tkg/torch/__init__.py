"""The networks and their forecasts for PyTorch users: needs torch and numpy, never jax."""

from geopol_tkg.torch.counts import CountModel
from geopol_tkg.torch.modules import REGCN, TiRGN
from geopol_tkg.torch.predictor import TKGPredictor

__all__ = ["REGCN", "CountModel", "TKGPredictor", "TiRGN"]
