"""Benchmarks, each beside its peer in one run. `make bench` runs them all; see `tests/bench/__main__.py`."""
