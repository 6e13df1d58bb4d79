"""Shared by all tests: one thread each, so that several test runs can share two cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
