"""What the figures of the docs come from: `python -m benchmarks.NAME`."""
