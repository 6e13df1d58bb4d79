"""Shared by all tests: one thread each, so that several test runs can share two cores; and no test goes to the internet."""

from __future__ import annotations

import os

import torch

os.environ["DPPO_OFFLINE"] = "1"  # inherited by the programs that tests start

torch.set_num_threads(1)
