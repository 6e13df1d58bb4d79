"""Damaged files of every format: each must load or be refused with a message for a person. Never anything else.

    python -m tests.fuzz --n 10000 --jobs 2 [--seed 0] [--keep folder]

Files are read in worker processes: one that crashes or hangs takes its process with it, is counted, and kept. Outcomes:

    loaded    it did                                leak      an error from inside a library
    refused   UsageError, EnvError, ... (run.py's)  executed  something was run, written or connected to
    mute      refused without naming the file       crash, hang, memory (more than MEMORY)
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import selectors
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz_cases import CASES, CASES_AND_PROBES, MARK, ROOT, make_seeds

PATIENCE = 300.0  # s that a file may take, on a machine that does other things
MEMORY = 3 * 2**30  # bytes that reading a file may take besides what the worker has
BAD = ("leak", "executed", "mute", "crash", "hang", "memory")
_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect", "exec",
           "pickle.find_class", "os.mkdir", "os.remove", "os.rename", "shutil.rmtree", "ctypes.dlopen")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- worker


def worker(root: Path, names: list[str]) -> None:
    """Reads ``case folder`` lines; answers each with the outcome. Begins by loading the seeds of ``names``, so that imports are done."""
    import resource

    from hydra.errors import CompactHydraException  # what Hydra prints without a traceback

    from agent.errors import UsageError
    from env.errors import EnvError
    from model.types import NonFiniteError, ShapeError, StateDictError

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    clear = (UsageError, EnvError, NonFiniteError, ShapeError, StateDictError, CompactHydraException)
    seen: list[str] = []
    watching = [False]

    def audit(event: str, arguments: tuple) -> None:
        if event == "subprocess.Popen" and ("ffmpeg" in str(arguments[0]) or "hdf5_probe.py" in str(arguments[1])):
            return  # decodes videos, looks through HDF5 files
        named = (
            event == "open" and isinstance(arguments[0], str) and not Path(arguments[0]).is_dir()
        )  # no temporary file
        writes = named and "w" in str(arguments[1])
        if watching[0] and (event in _EVENTS or writes):
            seen.append(f"{event} {arguments!r:.150}")

    for name in names:
        CASES[name].load(root / name)
    sys.addaudithook(audit)
    status = Path("/proc/self/status").read_text()
    used = int(status.split("VmSize:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        name, folder = line.rstrip("\n").split("\t")
        seen.clear()
        watching[0] = True
        outcome = _read(name, Path(folder), clear)
        watching[0] = False
        if seen or Path(MARK).exists():
            outcome = f"executed\t{'; '.join(seen[:3])}"
        answers.write("".join(c if c.isprintable() or c == "\t" else " " for c in outcome) + "\n")
        answers.flush()


def _read(name: str, folder: Path, clear: tuple[type[Exception], ...]) -> str:
    try:
        CASES_AND_PROBES[name].load(folder)
    except clear as error:
        named = str(folder) in str(error) or CASES_AND_PROBES[name].format == "yaml"
        return f"{'refused' if named else 'mute'}\t{type(error).__name__}: {error!s:.300}"
    except MemoryError as error:
        return f"memory\t{error!s:.300}"
    except BaseException as error:
        import traceback

        where = "; ".join(
            f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-3:]
        )
        return f"leak\t{type(error).__name__}: {error!s:.200} [{where}]"
    return "loaded\t"


class Worker:
    """The other end of it; started anew when it dies or has to be killed."""

    def __init__(self, seeds: Path, cwd: Path, names: list[str]) -> None:
        self._seeds, self._cwd, self._names = seeds, cwd, names
        self._child: subprocess.Popen | None = None

    def _start(self) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "DPPO_DATA_DIR": "x",
            "DPPO_LOG_DIR": "x",
        }
        command = [sys.executable, "-m", "tests.fuzz", "--worker", str(self._seeds), "--cases", *self._names]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=self._cwd
        )  # fmt: skip
        if self._answer(600.0) != "ready":
            raise RuntimeError(f"a worker does not start: {' '.join(command)}")

    def _answer(self, seconds: float) -> str | None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            return self._child.stdout.readline().rstrip("\n") if selector.select(seconds) else None

    def read(self, name: str, folder: Path) -> tuple[str, str]:
        """Outcome and details."""
        if self._child is None:
            self._start()
        self._child.stdin.write(f"{name}\t{folder}\n")
        self._child.stdin.flush()
        answer = self._answer(PATIENCE)
        if answer:
            return tuple(answer.split("\t", 1))
        code = self.close()
        return (
            ("hang", f"nothing within {PATIENCE:g} s")
            if answer is None
            else ("crash", f"the process ended with {code}")
        )

    def close(self) -> int | None:
        """End the process; what it ended with."""
        child, self._child = self._child, None
        if child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that died by itself says how
            child.wait(0.2)
        child.kill()
        with child.stdin, child.stdout:
            return child.wait()


# ---------------------------------------------------------------------------------------------------------------- driver


def plan(n: int, seed: int, names: list[str]) -> Iterator[tuple[int, str]]:
    """Number and case of each file: the five formats (and pickles) in turn, the cases of each in turn."""
    formats: dict[str, list[str]] = {}
    for name in names:
        formats.setdefault(CASES[name].format, []).append(name)
    order = list(formats.values())
    for i in range(n):
        cases = order[i % len(order)]
        yield seed * 10**9 + i, cases[(i // len(order)) % len(cases)]


def damaged(name: str, number: int, seeds: Path, folder: Path) -> Path:
    """The damaged file of this number, with its good neighbours, in ``folder``."""
    case, rng = CASES[name], random.Random(number)
    shutil.copytree(seeds / name, folder)
    target = folder / case.target
    target.write_bytes(case.mutate(target.read_bytes(), rng))
    return folder


def run(
    n: int, seed: int = 0, jobs: int = 1, names: list[str] | None = None, keep: Path | None = None
) -> tuple[dict, list[str]]:
    """Fuzz ``n`` files. Returns counts, ``(format, outcome) -> n``, and a line for every outcome that must not be."""
    counts: collections.Counter = collections.Counter()
    bad: list[str] = []
    names = names or list(CASES)
    work, lock = plan(n, seed, names), threading.Lock()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as temporary:
        root = Path(temporary)
        make_seeds(root / "seeds")

        def go(job: int) -> None:
            cwd = root / f"cwd_{job}"
            cwd.mkdir()
            reader = Worker(root / "seeds", cwd, names)
            try:
                while True:
                    with lock:
                        number, name = next(work, (None, None))
                    if name is None:
                        return
                    folder = damaged(name, number, root / "seeds", root / f"file_{job}_{number}")
                    outcome, details = reader.read(name, folder)
                    with lock:
                        counts[CASES[name].format, outcome] += 1
                        if outcome in BAD:
                            bad.append(f"{outcome} {name} {number}: {details.replace(str(folder), '...')}")
                            if keep:
                                shutil.copytree(folder, keep / f"{outcome}_{name}_{number}", dirs_exist_ok=True)
                    shutil.rmtree(folder)
            finally:
                reader.close()

        threads = [threading.Thread(target=go, args=(job,)) for job in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return dict(counts), bad


def table(counts: dict) -> str:
    """Formats down, outcomes across."""
    outcomes = ["loaded", "refused", *BAD]
    formats = sorted({f for f, _ in counts})
    rows = [["", *outcomes]] + [[f, *(str(counts.get((f, o), 0)) for o in outcomes)] for f in formats]
    rows.append(["all", *(str(sum(counts.get((f, o), 0) for f in formats)) for o in outcomes)])
    return "\n".join("".join(cell.rjust(10) for cell in row) for row in rows)


def main(argv: list[str] | None = None) -> None:
    """Entry point; exit code 1 where anything but loaded and refused came of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cases", nargs="*", choices=list(CASES))
    parser.add_argument("--keep", type=Path, help="copy what went wrong here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        worker(args.worker, args.cases or [])
        return
    start = time.perf_counter()
    counts, bad = run(args.n, args.seed, args.jobs, args.cases, args.keep)
    print("\n".join(bad))
    print(table(counts))
    print(f"{sum(counts.values())} files in {time.perf_counter() - start:.0f} s")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
