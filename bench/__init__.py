"""Benchmark programs of Cascade, run from the checkout: `python -m bench --help`."""
