"""The live view: follows slot 0, never stands in the way."""

import contextlib
import logging
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from env import registry
from env.protocol import VectorEnv
from env.viewer import LiveView
from tests.point_mass import PointMass

XML = "<mujoco><worldbody><body><joint type='slide'/><joint type='slide'/><geom size='.1'/></body></worldbody></mujoco>"


class Shown(PointMass):
    def render_model(self):
        return mujoco.MjModel.from_xml_string(XML)

    def render_state(self, i):
        return self.state[i, :2].copy()


@pytest.fixture
def window(monkeypatch):
    """A stand-in for MuJoCo's window that remembers what it drew."""
    seen = SimpleNamespace(open=True, drawn=[])

    def launch_passive(model, data):
        return SimpleNamespace(
            is_running=lambda: seen.open,
            lock=contextlib.nullcontext,
            sync=lambda: seen.drawn.append(data.qpos.copy()),
            close=lambda: setattr(seen, "open", False),
        )

    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.setattr("mujoco.viewer.launch_passive", launch_passive)
    return seen


def test_it_draws_the_first_slot_at_every_chunk_and_changes_nothing(window):
    venv, plain = LiveView(Shown(3)), PointMass(3)
    assert isinstance(venv, VectorEnv)
    np.testing.assert_array_equal(venv.reset(5)["state"], plain.reset(5)["state"])
    for k in range(4):
        chunk = np.random.default_rng(k).uniform(-1, 1, (3, 2, 2))
        np.testing.assert_array_equal(venv.step(chunk).obs["state"], plain.step(chunk).obs["state"])
        np.testing.assert_array_equal(window.drawn[-1], plain.state[0, :2])
    assert len(window.drawn) == 5
    window.open = False  # somebody closed the window
    venv.step(np.zeros((3, 2, 2)))
    assert len(window.drawn) == 5
    venv.close()


def test_without_a_display_it_says_so_once_and_goes_on(monkeypatch, caplog):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.WARNING):
        venv = LiveView(Shown(3))
        venv.reset(1)
        venv.step(np.zeros((3, 2, 2)))
        venv.close()
    assert caplog.text.count("no display") == 1


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({}, False),
        ({"render": True}, True),
        ({"specific": {"headless": False}}, True),
        ({"specific": {"headless": True}}, False),
        ({"specific": {"headless": False}, "render": False}, False),  # as of fine-tuning's evaluations
    ],
)
def test_who_asks_for_a_window_gets_one(window, monkeypatch, said, shown):
    monkeypatch.setitem(registry.TASKS, "shown", lambda cfg: Shown(3))
    venv = registry.make_vector_env({"name": "shown", **said})
    assert isinstance(venv, LiveView) is shown
    venv.close()
