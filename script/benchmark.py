"""Speed of every part that claims to be fast, each beside a yardstick measured in the same minute. See ``--help``
and ``--list``.

Each figure is printed with its ratio against that yardstick; the JSON (``--json``) also records the machine, the
versions and the commit.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # as script/run.py: torch's threads sleep while simulations use the cores
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # works right after a clone, without an installation
    sys.path.insert(0, str(ROOT))

from script.bench import registry, report  # noqa: E402
from script.bench.measure import Figure  # noqa: E402

EXAMPLES = """examples:
  python script/benchmark.py --list                          what there is
  python script/benchmark.py --only engine,startup           two of them
  python script/benchmark.py --scale 0.1 --repeats 2         a quick look at all (minutes)
  python script/benchmark.py --json benchmark.json           full size, for the record (the published loop alone takes
                                                             several minutes per iteration on two cores)
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--list", action="store_true", help="list the benchmarks and leave")
    p.add_argument("--only", metavar="A,B", help="run these benchmarks only (names from --list)")
    p.add_argument(
        "--repeats",
        type=_positive,
        metavar="N",
        help="turns per contestant (default: each benchmark's own, see --list)",
    )
    p.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="X",
        help="size of each turn; 1.0 is the published size, 0.1 a quick look (default 1.0)",
    )
    p.add_argument(
        "--json", type=Path, metavar="PATH", help="also write all figures, the machine and the versions to this file"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of episodes, weights and noise (default 0)")
    p.add_argument(
        "--reference-workers",
        type=_positive,
        metavar="N",
        help="simulator processes of the published loop (default: the fewest that fill the cores evenly; "
        "50 is one per environment as published, and needs the memory)",
    )
    p.add_argument(
        "--policy",
        metavar="CHECKPOINT",
        help="pre-training checkpoint of Lift that both fine-tuning loops start from (default: random weights)",
    )
    return p


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text}")
    return value


def run(
    chosen: Sequence[registry.Benchmark], context_of: dict[str, registry.Context]
) -> tuple[list[Figure], dict[str, str]]:
    """Run the benchmarks one after the other -> (figures, reason of each that was skipped). A failure never costs
    the other rows.
    """
    figures: list[Figure] = []
    skipped: dict[str, str] = {}
    for item in chosen:
        with tqdm(desc=item.name, unit="turn", leave=False, dynamic_ncols=True, disable=None) as bar:
            context = context_of[item.name]

            def tick(name: str, bar: tqdm = bar) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update()

            context.tick = tick
            try:
                for figure in item.function(context):
                    figures.append(figure)
                    tqdm.write(f"{item.name}: {report.line(figure)}", file=sys.stderr)
            except (registry.UnavailableError, ImportError) as error:
                skipped[item.name] = str(error)
            except Exception as error:  # shown in full, and told in the table and in the exit status
                tqdm.write(traceback.format_exc(), file=sys.stderr)
                skipped[item.name] = f"FAILED: {type(error).__name__}: {error}"
    return figures, skipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 if every chosen benchmark ran, 1 if one failed, 2 for a wrong argument."""
    p = parser()
    args = p.parse_args(arguments)
    known = registry.discover()
    if args.list:
        rows = [("benchmark", "repeats", "measures")]
        rows += [(item.name, str(item.repeats), item.title) for item in known.values()]
        tqdm.write("\n".join(f"{name:<14}{repeats:>8}  {title}" for name, repeats, title in rows), file=sys.stdout)
        return 0
    try:
        chosen = registry.select(args.only, known)
    except ValueError as error:
        p.error(str(error))
    if not 0 < args.scale <= 1:
        p.error(f"--scale: expected a number above 0 and up to 1, found {args.scale}")
    before = report.machine()
    if before["load_average"] and before["load_average"][0] > 0.3 * before["cores"]:
        load = f"load average {before['load_average'][0]:.1f}"
        tqdm.write(f"warning: other jobs are running ({load}): trust ratios, not absolute figures", file=sys.stderr)
    contexts = {
        item.name: registry.Context(
            repeats=args.repeats or item.repeats,
            scale=args.scale,
            cores=before["cores"],
            seed=args.seed,
            reference_workers=args.reference_workers,
            policy=args.policy,
        )
        for item in chosen
    }
    figures, skipped = run(chosen, contexts)
    tqdm.write(report.table(figures, skipped), file=sys.stdout)
    if args.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        report.write_json(args.json, report.document(figures, skipped, settings, before))
        tqdm.write(f"written: {args.json}", file=sys.stdout)
    return 1 if any(reason.startswith("FAILED") for reason in skipped.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
