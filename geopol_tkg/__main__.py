"""Entry point: ``python -m geopol_tkg`` and the console script."""

import sys

from geopol_tkg.huge_pages import restart_with_huge_pages


def main() -> None:
    """Run the command line and exit with its code."""
    restart_with_huge_pages()  # before anything slow is imported
    from geopol_tkg.cli import run_app

    sys.exit(run_app())


if __name__ == "__main__":
    main()
