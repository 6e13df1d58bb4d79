"""The list of benchmarks. Adding one is writing one decorated function in ``script/bench/rows/``::

@benchmark("render", "Camera images per second against robosuite", repeats=5)
def render(context: Context) -> Iterable[Figure]:
    ...
    yield compare("render, 96 x 96", "images/s", ours.rates, "robosuite", theirs.rates)
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from script.bench.measure import Contestant, Figure, Samples, interleave


class UnavailableError(RuntimeError):
    """A benchmark cannot run here; the message says what is missing. The table shows it as skipped."""


@dataclass
class Context:
    """What a benchmark is told: how often to repeat, how big to be, and where to show that it moves."""

    repeats: int
    scale: float = 1.0  # 1.0 is the size for the record
    cores: int = 2
    seed: int = 0
    tick: Callable[[str], None] = lambda name: None
    reference_workers: int | None = None  # simulator processes of the published loop; None: as many as suit the cores
    policy: str | None = None  # path of a pre-training checkpoint that both loops start from; None: random weights

    def interleave(self, contestants: Mapping[str, Contestant], warm_up: bool = True) -> dict[str, Samples]:
        """``measure.interleave`` with this context's repeats and progress bar."""
        return interleave(contestants, self.repeats, self.tick, warm_up)


Row = Callable[[Context], Iterable[Figure]]


@dataclass(frozen=True)
class Benchmark:
    """A registered function, its name on the command line, what it measures, and how often it repeats by default."""

    name: str
    title: str
    function: Row
    repeats: int


_BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(name: str, title: str, repeats: int = 5) -> Callable[[Row], Row]:
    """Register a function that yields figures. Raises ValueError if the name is taken."""

    def register(function: Row) -> Row:
        if name in _BENCHMARKS:
            raise ValueError(f"benchmark {name!r} is registered twice: rename one of them")
        _BENCHMARKS[name] = Benchmark(name, title, function, repeats)
        return function

    return register


def discover() -> dict[str, Benchmark]:
    """Import every module of ``script/bench/rows`` and return all benchmarks by name, in the order of their modules."""
    package = importlib.import_module("script.bench.rows")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(_BENCHMARKS)


def select(only: str | None, known: Mapping[str, Benchmark]) -> list[Benchmark]:
    """The benchmarks named in ``only`` ("a,b"), in that order; all of them for None.

    Raises ValueError for an unknown name, with the nearest known one.
    """
    if only is None:
        return list(known.values())
    chosen = []
    for name in filter(None, (part.strip() for part in only.split(","))):
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, 0)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"no benchmark called {name!r}; known: {', '.join(known)}{hint}")
        chosen.append(known[name])
    if not chosen:
        raise ValueError(f"--only names no benchmark; known: {', '.join(known)}")
    return chosen
