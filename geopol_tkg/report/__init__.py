"""A report on models: one HTML file that needs no network and no script."""
