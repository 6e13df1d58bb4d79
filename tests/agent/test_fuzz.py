"""A small, seeded part of ``python -m tests.fuzz``: damaged files load or are refused in a sentence, and nothing else."""

from __future__ import annotations

import random
import shutil

import pytest

from tests import fuzz, fuzz_cases

pytest.importorskip("pyarrow")


def test_damaged_files_load_or_are_refused():
    counts, bad = fuzz.run(252, seed=7)
    assert not bad, "\n".join(bad)
    for kind in ("npz", "pickle", "pt", "yaml", "hdf5", "parquet", "mp4"):
        assert counts[kind, "refused"] > 12 and sum(n for (k, _), n in counts.items() if k == kind) == 36
    assert sum(n for (_, outcome), n in counts.items() if outcome == "loaded") > 30


def test_whatever_goes_wrong_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "PATIENCE", 3.0)
    reader = fuzz.Worker(tmp_path, tmp_path, [])
    found = {}
    for name, (expected, _) in fuzz_cases.PROBES.items():
        found[name] = (expected, *reader.read(name, tmp_path))
        shutil.rmtree(tmp_path / fuzz_cases.MARK, ignore_errors=True)
    reader.close()
    assert not {name: says for name, says in found.items() if says[0] != says[1]}
    assert "3" in found["dead"][2] and "KeyError" in found["library"][2]


def test_files_are_the_same_each_time(tmp_path):
    data = bytes(range(256)) * 9
    for mutate in (fuzz_cases.raw, fuzz_cases.program):
        assert mutate(data, random.Random(5)) == mutate(data, random.Random(5)) != mutate(data, random.Random(6))
    assert len({fuzz_cases.raw(data, random.Random(k)) for k in range(50)}) > 45
    assert list(fuzz.plan(8, 3, list(fuzz_cases.CASES)))[:2] == [(3_000_000_000, "demos"), (3_000_000_001, "padded")]
