"""The parts of `benchmarks/gain.py`, and the tables that it runs (`*.toml`)."""
