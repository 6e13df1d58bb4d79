"""A policy over a websocket: the same actions, in time or not at all; and what may be said on the wire."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from env.franka.policy_server import PolicyServer
from env.franka.remote import Greeting, PolicyError, RemotePolicy
from env.franka.types import DeploymentError, Policy
from env.franka.wire import DTYPES, MAX_BYTES, WireError, pack, unpack
from tests.env.franka.policy_process import (
    GREETING,
    NORMALIZER,
    SPEC,
    LinearPolicy,
    actions,
    observation,
    served_elsewhere,
)


@contextlib.contextmanager
def served(delay: float = 0.0, port: int = 0):
    server = PolicyServer(LinearPolicy(delay), GREETING, port=port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(10)


def test_the_same_actions_as_without_a_wire():
    with served() as server:
        remote = RemotePolicy(f"ws://127.0.0.1:{server.port}", timeout=20)
        assert all(hasattr(remote, name) for name in Policy.__annotations__)
        assert (remote.act_steps, remote.horizon_steps, remote.action_dim, remote.max_episode_steps) == (2, 3, 7, 300)
        assert remote.spec == SPEC and remote.normalizer == NORMALIZER and remote.checkpoint_sha256 == "ab" * 32
        for seed in range(3):
            remote.reset(seed)
            found = remote(observation(seed))
            assert np.array_equal(found, actions(observation(seed), seed)) and found.dtype == np.float32
        assert 0 <= remote.infer_ms < 2000
        remote.close()
        assert np.array_equal(remote(observation(2)), actions(observation(2), 2)), "connects anew by itself"
        remote.close()


def test_a_slow_policy_and_a_late_answer():
    """300 ms are waited for where allowed. Where not, the call fails in time, and the late answer is never taken for a later one's."""
    with served(delay=0.3) as server:
        patient = RemotePolicy(f"ws://127.0.0.1:{server.port}", timeout=20)
        start = time.monotonic()
        patient(observation())
        assert time.monotonic() - start >= 0.3 and patient.infer_ms >= 300
        patient.close()
        hasty = RemotePolicy(f"ws://127.0.0.1:{server.port}", timeout=0.1)
        start = time.monotonic()
        with pytest.raises(PolicyError, match=r"no answer within 0\.1 s"):
            hasty(observation(1))
        assert time.monotonic() - start < 0.3
        hasty._timeout = 20
        assert np.array_equal(hasty(observation(2)), actions(observation(2)))
        hasty.close()


def test_a_server_that_is_killed_or_hangs():
    """The next call says so, soon; a new server with the same policy is taken up again, with another it is not."""
    with served_elsewhere("0") as (child, port):
        remote = RemotePolicy(f"ws://127.0.0.1:{port}", timeout=20)
        remote(observation())
        remote._timeout = 0.5
        os.kill(child.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(PolicyError, match="no answer within"):
            remote(observation())
        assert 0.4 < time.monotonic() - start < 1.5
        child.kill()
        child.wait()
        for _ in range(3):
            start = time.monotonic()
            with pytest.raises(PolicyError, match=str(port)):
                remote(observation())
            assert time.monotonic() - start < 1.5
    remote._timeout = 20
    with served(port=port):
        assert np.array_equal(remote(observation(5)), actions(observation(5)))
    other = Greeting(2, 3, 7, 301, SPEC, NORMALIZER)
    server = PolicyServer(LinearPolicy(), other, port=port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.raises(PolicyError, match=str(port)):  # the end of the old connection
        remote(observation())
    with pytest.raises(PolicyError, match="another policy than before"):
        remote(observation())
    server.close()
    thread.join(10)


def test_killed_while_it_thinks():
    with served_elsewhere("30") as (child, port):
        remote = RemotePolicy(f"ws://127.0.0.1:{port}", timeout=20)
        threading.Timer(0.2, child.kill).start()
        start = time.monotonic()
        with pytest.raises(PolicyError):
            remote(observation())
        assert time.monotonic() - start < 5, "the end of the connection ends the wait"


def test_the_server_refuses_by_name_and_goes_on():
    from websockets.sync.client import connect

    good = {"type": "infer", "id": 1, "observation": observation()}
    wrong = [
        (b"\xc1", "no message"),
        (b"\x81" * 2000, "no message"),
        ("text", "found text"),
        (msgpack.packb([1, 2]), "a map with a word 'type'"),
        (pack({"type": "jump", "id": 1}), "'infer' or 'reset', found 'jump'"),
        (pack({"type": "infer", "observation": {}}), "id: expected"),
        (pack({**good, "observation": {"state": np.zeros((1, 8))}}), r"expected arrays of shape .*\(1, 9\).* found .*\(1, 8\)"),
        (pack({**good, "observation": {**observation(), "state": np.full((1, 9), np.nan)}}), "state: expected finite"),
        (pack({**good, "observation": {**observation(), "rgb": np.zeros((2, 3, 5, 5))}}), "rgb: expected uint8, found float64"),
        (pack({**good, "observation": {**observation(), "state": np.full((1, 9), 7.0)}}), "the policy failed: RuntimeError: seven"),
        (pack({"type": "reset", "id": 1, "seed": "x"}), "seed: expected"),
    ]  # fmt: skip
    with served() as server:
        with connect(f"ws://127.0.0.1:{server.port}", proxy=None) as client:
            client.recv(20)
            for data, message in wrong:
                client.send(data)
                answer = unpack(client.recv(20), "error")
                assert re.search(message, answer["message"]), answer
            client.send(pack(good))
            assert np.array_equal(unpack(client.recv(20), "actions")["actions"], actions(observation()))
        remote = RemotePolicy(f"ws://127.0.0.1:{server.port}", timeout=20)
        with pytest.raises(PolicyError, match=r"expected arrays of shape"):
            remote({"state": np.zeros((1, 9))})
        assert np.array_equal(remote(observation()), actions(observation()))
        remote.close()


def test_health_and_strangers():
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with served() as server:
        base = f"127.0.0.1:{server.port}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{base}/healthz", timeout=20) as answer:
            assert (answer.status, answer.read()) == (200, b"ok\n")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(f"http://{base}/admin", timeout=20)
        with pytest.raises(InvalidStatus, match="403"):  # a page in somebody's browser
            connect(f"ws://{base}", origin="http://evil.example", proxy=None)
        assert server._server.socket.getsockname()[0] == "127.0.0.1"
        with pytest.raises(DeploymentError, match="cannot be served"):
            PolicyServer(LinearPolicy(), GREETING, port=server.port)
    with pytest.raises(DeploymentError, match=r"policy\.url: .*no policy server answers.*script/serve_policy\.py"):
        RemotePolicy(f"ws://{base}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": 2}, "speaks protocol 2, this is 1"),
        ({"act_steps": 4}, "expected a policy's sizes"),
        ({"action_dim": "7"}, "action_dim: expected"),
        ({"spec": {"task": "lift", "run": 1}}, "expected a policy's sizes and"),
        ({"normalizer": {"obs_min": np.zeros(3)}}, "hello: "),
    ],
)
def test_a_greeting_that_is_none_is_refused(change, message):
    assert Greeting.read(unpack(pack(GREETING.message()), "hello")).message().keys() == GREETING.message().keys()
    with pytest.raises(WireError, match=message):
        Greeting.read({**GREETING.message(), **change})


def test_arrays_survive_the_wire():
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        for shape in ((), (0,), (3,), (2, 0, 5), (2, 3, 5)):
            array = np.asarray(rng.normal(size=shape) * 3).astype(dtype)
            found = unpack(pack({"type": "x", "a": [array], "n": 1.5, "none": None}))["a"][0]
            assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)
    found = unpack(pack({"type": "x", "a": np.arange(6, dtype=">f4").reshape(2, 3).T}))["a"]
    assert np.array_equal(found, np.arange(6).reshape(2, 3).T) and found.flags.writeable
    for bad in (np.array([object()]), np.array(["x"]), np.zeros(2, complex), {1}, np.zeros((1,) * 7)):
        with pytest.raises(WireError, match="cannot be sent"):
            pack({"type": "x", "a": bad})
    with pytest.raises(WireError, match="bytes; expected at most"):
        pack({"type": "x", "a": np.zeros(MAX_BYTES + 1, np.uint8)})


def array(*parts) -> bytes:
    return msgpack.packb({"type": "x", "a": msgpack.ExtType(1, msgpack.packb(list(parts)))})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array("|O", [1], b"12345678"), r"dtype '\|O'"),
        (array("<f4,<f4", [1], b"12345678"), "dtype"),
        (array("<f4", [3], b"1234"), "4 bytes; expected 12"),
        (array("<f4", [-1], b""), "shape"),
        (array("<f4", [2**20, 2**20, 2**20, 0], b"1"), "shape|bytes"),
        (array("<f4", [1] * 7, b"1234"), "shape"),
        (array("|b1", [1], b"\x02"), "truth values"),
        (array("<f4", b"", b""), r"\[dtype, shape, bytes\]"),
        (array("<f4", [1], "1234"), r"\[dtype, shape, bytes\]"),
        (array("<f4", [1], msgpack.ExtType(1, b"")), "inside an array"),
        (msgpack.packb({"type": "x", "a": msgpack.ExtType(5, b"")}), "extension 5"),
        (msgpack.packb({"type": "x", "a": [0] * 300}), "no message"),
        (msgpack.packb({"type": "x"}) + b"\0", "no message: ExtraData"),
        (b"\x91" * 5000 + b"\0", "no message"),
        (msgpack.packb({1: 2}), "no message"),
        (b"", "no message"),
        (b"\0" * (MAX_BYTES + 1), "expected at most"),
    ],
)
def test_malformed_messages_are_refused(data, message):
    with pytest.raises(WireError, match=message):
        unpack(data)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=80), st.integers(0, 10**6), st.integers(0, 255))
def test_nothing_but_a_wire_error_comes_of_damage(noise, position, value):
    message = bytearray(
        pack({"type": "infer", "id": 3, "observation": {"state": np.ones((1, 2)), "n": [1, None, "x", True]}})
    )
    message[position % len(message)] = value
    for data in (noise, bytes(message), bytes(message[: position % len(message)])):
        with contextlib.suppress(WireError):
            assert isinstance(unpack(data)["type"], str)
