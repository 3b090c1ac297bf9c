"""The bundled sample of real GDELT events; README.md says what it holds."""
