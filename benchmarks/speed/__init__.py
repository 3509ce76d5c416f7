"""The parts of `benchmarks.latency`: who is timed, on what, and how."""
