"""The name that DPPO's notes use for ``script/run.py``, and the command ``d2ppo``: same arguments, same behaviour."""

from __future__ import annotations

import runpy
from pathlib import Path


def main() -> None:
    """Run ``run.py`` as if it had been named."""
    # Not an import: Hydra finds cfg/ from the file that runs as __main__.
    runpy.run_path(str(Path(__file__).with_name("run.py")), run_name="__main__")


if __name__ == "__main__":
    main()
