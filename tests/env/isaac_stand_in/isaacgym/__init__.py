"""In place of NVIDIA's: as there, PyTorch must not have been imported before."""

import sys

if "torch" in sys.modules:
    raise ImportError("PyTorch was imported before isaacgym modules")
