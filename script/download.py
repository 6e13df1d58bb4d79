"""Fetch the published data sets, normalisations and checkpoints, or say which are there.

    python script/download.py                            list them all, and what of them is here
    python script/download.py robomimic/lift             fetch all whose path begins so: train.npz and normalization.npz of Lift
    python script/download.py "*/lift/*diffusion_mlp_*"  or whose path looks so (quote it)
    python script/download.py --all                      fetch everything; camera images are large
    python script/download.py --verify [name ...]        compare what is here with the sha256 noted when it was downloaded

A run fetches what it needs by itself; this is for preparing a machine without internet, and for looking. Data go to $DPPO_DATA_DIR
(data/), checkpoints to $DPPO_LOG_DIR (log/), under the paths that the published configurations ask for. What is there is never replaced:
delete it first. An interrupted download goes on where it stopped.

Sources: DPPO_MIRROR (an http(s) address or a folder under which the same paths lie), then Google Drive. DPPO_OFFLINE=1 leaves the network
alone. To make a mirror, copy or serve the data and log folders of a machine that has the files, with their .sha256 files. Without any
source there is `python script/collect_demos.py --task <task>`: scripted demonstrations, no download.

Status: 0 all is well, 1 a file could not be fetched or has changed, 2 no such name.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import logging
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.download import Entry, catalogue, fetch, recorded, verify  # noqa: E402
from agent.errors import DownloadError, UsageError  # noqa: E402


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help="beginning of a path, or a pattern with * and ?")
    parser.add_argument("--all", action="store_true", help="all published files")
    parser.add_argument("--verify", action="store_true", help="fetch nothing; compare what is here with its sha256")
    args = parser.parse_args(argv)
    if args.all and args.names:
        parser.error("--all is everything: give it without names")
    return args


def choose(names: list[str]) -> list[Entry]:
    """The published files that ``names`` mean; all for none.

    Raises:
        UsageError: a name means none; says which are near.
    """
    chosen: dict[str, Entry] = {}
    for name in names or ["*"]:
        wanted = name.rstrip("/")
        found = {e.target: e for e in catalogue() if e.target == wanted or e.target.startswith(f"{wanted}/")}
        found |= {e.target: e for e in catalogue() if fnmatch.fnmatchcase(e.target, wanted)}
        if not found:
            known = {
                str(parent)
                for e in catalogue()
                for parent in (PurePosixPath(e.target), *PurePosixPath(e.target).parents)
            }
            near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or ["robomimic/lift"]
            raise UsageError(f"{name}: no published file begins or looks so; nearest: {', '.join(near)}")
        chosen |= found
    return list(chosen.values())


def state_of(entry: Entry) -> str:
    """What of it is on this machine, in a word or two."""
    if not entry.place.exists():
        return "-"
    size = f"{entry.place.stat().st_size / 1e6:,.1f} MB"
    return size if recorded(entry.place) else f"{size}, no sha256"


def listing(entries: list[Entry]) -> str:
    """A table of ``entries``."""
    rows = [(e.kind, state_of(e), e.target) for e in entries]
    lines = [f"{kind:<14}{state:<22}{target}" for kind, state, target in rows]
    here = sum(state != "-" for _, state, _ in rows)
    return "\n".join([f"{'kind':<14}{'here':<22}path", *lines, f"{here} of {len(rows)} files are here"])


def each(entries: list[Entry], checking: bool) -> int:
    """Fetch ``entries``, or compare them with their notes; returns the status of the command."""
    failed = 0
    for entry in entries:
        if checking and not entry.place.exists():
            continue
        try:
            if not checking:
                fetch(entry, entry.place)
            said = (
                "as downloaded"
                if verify(entry.place)
                else "here, but not downloaded by this project: no sha256 to compare with"
            )
            sys.stdout.write(f"{entry.place}: {said}\n")
        except DownloadError as error:
            failed += 1
            sys.stderr.write(f"\nerror: {error}\n")
    sys.stdout.write(f"{failed} of {len(entries)} files failed\n" if failed else "")
    return min(failed, 1)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        entries = choose(args.names)
        if not (args.names or args.all or args.verify):
            sys.stdout.write(listing(entries) + "\n")
            return
        status = each(entries, args.verify)
    except UsageError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command goes on where it stopped\n")
        sys.exit(130)
    sys.exit(status)


if __name__ == "__main__":
    main()
