"""Is one policy better than another? Two finished runs on the same recorded seeds, episode by episode.

    python script/compare.py RUN_A RUN_B        # evaluations or fine-tuning runs (of these, the tuned policy)
    python script/compare.py RUN                # a fine-tuning run: before against after
    python script/compare.py RUN_A RUN_B --out difference.json

Both policies met the same initial states and drew the same noise, so the difference is known better than either rate. Printed are it with
its interval, an exact McNemar test, the seeds that tell the two apart, and what differs in the configurations; the JSON file holds all of
it (default: comparison_<a>_<b>.json in the current folder). Runs on other seeds or of another task are refused. Exit code 2 then.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.errors import UsageError  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from agent.report.comparison import compare, lines  # noqa: E402
from agent.report.runs import read_run  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="RUN_A", help="run directory")
    parser.add_argument("b", metavar="RUN_B", nargs="?", help="run directory to compare it with")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals (default 0.95)")
    parser.add_argument("--out", metavar="JSON", help="where the result goes")
    args = parser.parse_args(argv)
    try:
        runs = [read_run(path) for path in (args.a, args.b) if path]
        found = compare(*runs, level=args.level)
        out = Path(args.out or f"comparison_{'_'.join(run.path.name for run in runs)}.json")
        with atomic_write(out) as file:
            file.write((json.dumps(found, indent=2) + "\n").encode())
    except (UsageError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.stdout.write("".join(f"{line}\n" for line in lines(found)) + f"\nwritten: {out}\n")


if __name__ == "__main__":
    main()
