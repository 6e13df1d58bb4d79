"""One page that shows finished runs: results with intervals, learning curves, feature maps, films, failures, what differs.

    python script/report.py RUN ...                           # writes report.html
    python script/report.py RUN ... --out can.html --title "Can, with and without dispersion"

RUN is a directory of pre-training, fine-tuning or evaluation, or a quickstart's folder; give a pre-training run with and one without a
dispersive loss to see their features side by side. Runs that differ only in their seeds are shown as one, with bands. The page is one file
that opens from disk and fetches nothing. t-SNE and UMAP need pip install -e .[report]; without it features are shown by PCA.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.errors import UsageError  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from agent.report.page import make_report  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Entry point; exit code 2 for a mistake a person can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--out", default="report.html", help="the page (default report.html)")
    parser.add_argument("--title", help="above it (default: the tasks)")
    parser.add_argument("--umap", action="store_true", help="also show features by UMAP (15 s more)")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    started = time.perf_counter()
    try:
        page = make_report(args.runs, args.title, args.umap)
        with atomic_write(args.out) as file:
            file.write(page.encode())
    except (UsageError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    size = len(page.encode()) / 1e6
    sys.stdout.write(
        f"{args.out}: {len(args.runs)} run{'s' if len(args.runs) > 1 else ''}, {size:.1f} MB, made in {time.perf_counter() - started:.1f} s\n"
    )


if __name__ == "__main__":
    main()
