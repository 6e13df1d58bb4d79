"""The parts of ``script/benchmark.py``: how to measure, what to measure against, and one module per family of rows."""
