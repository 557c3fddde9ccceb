"""Scripts to read from top to bottom. Run them as `python -m examples.NAME`."""
