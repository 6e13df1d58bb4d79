"""What are these checkpoints, whose, and which configuration fits?

    python script/inspect_checkpoint.py FILE ...            # a few lines per file
    python script/inspect_checkpoint.py FILE ... --json     # the same for programs, one list
    python script/inspect_checkpoint.py FILE --no-configs   # without looking through cfg/ (seconds)

Reads this project's checkpoints, published ones (DPPO, D2PPO) and folders with model.safetensors and config.json. Nothing in a file
is executed. Sizes are read off the shapes; a configuration fits if the policy that it builds has exactly the same keys and shapes.
Exit code 2 where a file cannot be read (the others are still shown).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.errors import UsageError  # noqa: E402
from agent.inspection import inspect, lines  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="checkpoints")
    parser.add_argument("--json", action="store_true", help="a list for programs")
    parser.add_argument("--no-configs", action="store_true", help="do not look for configurations that fit")
    args = parser.parse_args(argv)
    found, failed = [], False
    for file in args.files:
        try:
            found.append(inspect(file, configs=not args.no_configs))
        except UsageError as error:
            failed = True
            found.append({"file": file, "error": str(error)})
    shown = (
        json.dumps(found, indent=2)
        if args.json
        else "\n".join(
            line for about in found for line in ([f"error: {about['error']}"] if "error" in about else lines(about))
        )
    )
    sys.stdout.write(shown + "\n")
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    main()
