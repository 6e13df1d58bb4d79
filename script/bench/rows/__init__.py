"""The rows of the benchmark. Every module in this folder is imported by ``script/benchmark.py``: a new row is one
decorated function.

A row module imports only light things at its top (numpy, the standard library); torch, mujoco and the project's own
rooms are imported inside the functions, so that the other rows work where one of them is absent.
"""
