"""Forecast geopolitical events from GDELT with temporal knowledge graphs."""

__version__ = "0.1.0"
