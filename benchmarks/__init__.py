"""How well and how fast the guard works; see benchmarks/README.md."""
