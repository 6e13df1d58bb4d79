"""Which of this project's requirements does this interpreter lack? Used by setup.sh; standard library and pip only.

    python script/requirements.py missing [extra ...]   one unmet requirement per line, nothing when all are met
    python script/requirements.py light [extra ...]     what to install where nothing can be compiled, robosuite apart
    python script/requirements.py needs-light           exit 0 where robosuite's own requirements would not work

robosuite asks for `pynput` (whose `evdev` is compiled on installation: a C compiler, the Python and the Linux headers)
and for `opencv-python` (which wants the libraries of a desktop, libGL and GLib). It uses the first for its keyboard
device only, and `opencv-python-headless` serves for the second. On a bare server, then, robosuite is installed without
its requirements, and the ones that matter beside it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
ROBOSUITE_NEEDS = ("mink==0.0.5", "opencv-python-headless", "qpsolvers[quadprog]>=4.3.1", "termcolor")


def requirements(extras: list[str]) -> list[Requirement]:
    """The core requirements of pyproject.toml and those of ``extras``, where their markers apply."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    wanted, queue = list(project["dependencies"]), list(extras)
    while queue:
        extra = queue.pop()
        if extra not in groups:
            raise SystemExit(f"no such extra: {extra}; there are {', '.join(groups)}")
        for text in groups[extra]:
            if text.startswith(project["name"] + "["):  # `all` names the others
                queue += sorted(Requirement(text).extras)
            else:
                wanted.append(text)
    parsed = [Requirement(text) for text in wanted]
    return [r for r in parsed if r.marker is None or r.marker.evaluate()]


def missing(extras: list[str]) -> list[str]:
    """Requirements that are absent or outside their range. Another version than the tested pin is fine."""
    unmet = []
    for requirement in requirements(extras):
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            unmet.append(f"{requirement.name}{requirement.specifier}")
    return unmet


def needs_light() -> bool:
    """Whether there is nothing to compile evdev with, or no libGL or GLib for opencv-python.

    Linux only: elsewhere both come ready. D2PPO_LIGHT=1 says yes anyway.
    """
    if os.environ.get("D2PPO_LIGHT"):
        return True
    if not sys.platform.startswith("linux"):
        return False
    headers = [Path(sysconfig.get_path("include")) / "Python.h", Path("/usr/include/linux/input.h")]
    if not (shutil.which("cc") or shutil.which("gcc")) or not all(h.exists() for h in headers):
        return True
    try:
        for library in ("libGL.so.1", "libgthread-2.0.so.0"):
            ctypes.CDLL(library)
    except OSError:
        return True
    return False


def main(argv: list[str]) -> int:
    """See the module's docstring."""
    command, extras = argv[0], argv[1:]
    if command == "missing":
        lines = missing(extras)
    elif command == "light":
        lines = [str(r) for r in requirements(extras) if r.name != "robosuite"] + list(ROBOSUITE_NEEDS)
    elif command == "needs-light":
        return 0 if needs_light() else 1
    else:
        sys.stderr.write(__doc__ or "")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
