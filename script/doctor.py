"""What is here, what is missing, and the command that mends it.

    python script/doctor.py            a table, in about ten seconds
    python script/doctor.py --json     the same for programs
    python script/doctor.py --full     also times Lift's camera images (a minute)

Looks at Python, packages, GPU, cores and memory, render back ends (tried and timed), folders and disk space, WandB,
demonstrations and checkpoints. Changes nothing. Exit code 1 where something that every run needs is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from script import doctor_checks as checks  # noqa: E402
from script import doctor_trials as trials  # noqa: E402
from script.doctor_checks import BAD, NOTE, OK, WARN, Finding  # noqa: E402

SECTIONS = ("software", "machine", "rendering", "folders", "work", "doctor")
MARKS = {OK: ("ok", "32"), NOTE: ("note", "36"), WARN: ("warn", "33"), BAD: ("BAD", "31;1")}
ITEM_WIDTH, LINE_WIDTH = 20, 140


def guarded(name: str, check: Callable[[], Sequence[Finding]]) -> list[Finding]:
    """The check's findings; a check that fails is a finding, too."""
    try:
        return list(check())
    except Exception as error:  # whatever is wrong with this machine must not keep the rest from being told
        said = f"this check failed: {type(error).__name__}: {error}".splitlines()[0]
        return [Finding("doctor", name, WARN, said, "please report it")]


def examine(full: bool = False) -> list[Finding]:
    """All findings, in the order of ``SECTIONS``; slow checks run side by side."""
    order = (trials.NATIVE, *trials.backends())
    with ThreadPoolExecutor(len(order) + 1) as pool:
        imported = pool.submit(guarded, "imports", trials.imports)
        drawn = [pool.submit(guarded, backend, lambda b=backend: [trials.render_backend(b)]) for backend in order]
        findings = []
        for name in ("python", "packages", "machine", "folders", "wandb", "demonstrations", "checkpoints"):
            findings += guarded(name, getattr(checks, name))
        findings += imported.result()
        tried = [finding for future in drawn for finding in future.result()]
    findings += guarded("rendering", lambda: trials.rendering(tried))
    working = [finding.item for finding in tried if finding.status == OK]
    if full and working:
        findings += guarded("lift images", lambda: trials.lift_images(working))
    return sorted(findings, key=lambda finding: SECTIONS.index(finding.section))


def table(findings: Sequence[Finding], colour: bool) -> str:
    """The report for a person."""
    lines, section = [], ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", _paint(section, "1", colour)]
        mark, code = MARKS[finding.status]
        head = f"  {_paint(f'{mark:<5}', code, colour)} {finding.item:<{ITEM_WIDTH}} "
        indent = " " * (9 + ITEM_WIDTH)
        wrapped = textwrap.wrap(finding.found, LINE_WIDTH - len(indent), break_long_words=False) or [""]
        lines += [head + wrapped[0], *(indent + line for line in wrapped[1:])]
        if finding.mend:
            lines.append(indent + _paint(f"-> {finding.mend}", "1", colour))
    return "\n".join(lines[1:])


def summary(findings: Sequence[Finding]) -> str:
    """One line: can one start?"""
    bad, warned = ([f for f in findings if f.status == status] for status in (BAD, WARN))
    if bad:
        mends = list(dict.fromkeys(f.mend for f in bad if f.mend))
        first = f" Start with: {mends[0]}" if mends else ""
        return f"{len(bad)} thing{'s are' if len(bad) > 1 else ' is'} broken.{first}"
    if warned:
        return f"Ready, with {len(warned)} limitation{'s' if len(warned) > 1 else ''} (see 'warn')."
    return "Ready: bash script/quickstart.sh"


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\033[{code}m{text}\033[0m" if colour else text


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--full", action="store_true", help="also time Lift's camera images")
    args = parser.parse_args(argv)
    started = time.monotonic()
    findings = examine(args.full)
    broken = any(finding.status == BAD for finding in findings)
    if args.json:
        report = {
            "ok": not broken,
            "seconds": round(time.monotonic() - started, 2),
            "findings": [finding.as_dict() for finding in findings],
        }
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        sys.stdout.write(f"{table(findings, colour)}\n\n{summary(findings)}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
