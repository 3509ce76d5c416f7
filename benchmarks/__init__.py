"""How well the guard works: `python -m benchmarks.detection` and `python -m benchmarks.quality`."""
