"""The parts of `benchmarks/gain.py`, and the tables it works off (`*.toml`)."""
