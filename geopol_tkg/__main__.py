"""``python -m geopol_tkg``."""

from geopol_tkg.cli import main

main()
