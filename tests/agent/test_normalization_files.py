"""Statistics from ``normalization.npz`` and from DPPO's ``normalization.pth``: which file is taken, what is read, what is refused."""

import numpy as np
import pytest
import torch

from agent.dataset.normalization import existing, load_normalizer
from agent.errors import CheckpointError, DatasetError
from env.errors import EnvError

DO, DA = 7, 3


def statistics(low=-2.0):
    """As ``torch.save(LinearNormalizer().state_dict())`` writes them."""
    bounds = {"observations": torch.arange(DO) + 0.5, "actions": torch.arange(DA) + 0.25}
    return {f"stats.{key}.{end}": x if end == "max" else x + low for key, x in bounds.items() for end in ("max", "min")}


def test_both_kinds_say_the_same(tmp_path):
    torch.save(statistics(), tmp_path / "normalization.pth")
    found = load_normalizer(tmp_path / "normalization.pth")
    np.testing.assert_array_equal(found.obs_max, np.arange(DO) + 0.5)
    np.testing.assert_array_equal(found.action_min, np.arange(DA) - 1.75)
    found.save(tmp_path / "theirs" / "normalization.npz")
    assert load_normalizer(tmp_path / "theirs" / "normalization.npz") == found


def test_one_stands_in_for_the_other(tmp_path):
    torch.save(statistics(), tmp_path / "normalization.pth")
    assert existing(tmp_path / "normalization.npz").suffix == ".pth"
    load_normalizer(tmp_path / "normalization.npz")
    load_normalizer(tmp_path / "normalization.pth").save(tmp_path / "other" / "normalization.npz")
    assert existing(tmp_path / "other" / "normalization.pth").suffix == ".npz"
    with pytest.raises(EnvError, match=r"normalization\.npz does not exist"):
        load_normalizer(tmp_path / "nowhere" / "normalization.npz")


def test_what_is_published_is_what_would_be_fetched(tmp_path):
    """Of Furniture-Bench only ``.pth`` is published, of the others only ``.npz``."""
    for suite, task, kind in (
        ("furniture", "lamp_med", ".pth"),
        ("robomimic", "can", ".npz"),
        ("d3il", "avoid_m1", ".npz"),
    ):
        for asked in (".npz", ".pth"):
            assert existing(tmp_path / suite / task / f"normalization{asked}").suffix == kind


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({}, DatasetError, r"no stats\.observations\.min in it \(found nothing\)"),
        ({**statistics(), "stats.actions.max": 1.0}, DatasetError, r"no stats\.actions\.max"),
        ([1], DatasetError, "found list"),
        (statistics(low=1.0), DatasetError, "obs_min exceeds obs_max"),
        ({**statistics(), "stats.actions.min": torch.full((DA,), torch.nan)}, DatasetError, "NaN"),
        (np.random.default_rng(0), CheckpointError, "refused"),
    ],
)
def test_what_is_not_one_is_refused(tmp_path, content, error, message):
    torch.save(content, tmp_path / "normalization.pth")
    with pytest.raises(error, match=message):
        load_normalizer(tmp_path / "normalization.pth")
