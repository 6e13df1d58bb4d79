"""A policy on another machine: the robot's side.

Over one websocket, messages of ``wire.py``. The server greets with what a deployment has to know of the policy (``Greeting``); then each
``infer`` (id, observation) is answered by ``actions`` (the same id, actions, server_timing) or by ``error`` (a sentence), each ``reset`` by
``ready``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from env.errors import EnvError
from env.franka.observation import ObservationSpec
from env.franka.types import DeploymentError
from env.franka.wire import MAX_BYTES, WireError, field, pack, unpack
from env.normalizer import Normalizer

PROTOCOL = 1
_OPEN = 5.0  # seconds to connect at the start


class PolicyError(RuntimeError):
    """The policy did not answer in time, or not with actions; the message says what happened. Whoever drives a robot by it holds."""


@dataclass(frozen=True)
class Greeting:
    """What a server says of its policy."""

    act_steps: int
    horizon_steps: int
    action_dim: int
    max_episode_steps: int
    spec: ObservationSpec
    normalizer: Normalizer
    checkpoint_sha256: str | None = None

    @classmethod
    def of(cls, policy: Any, checkpoint_sha256: str | None = None) -> Greeting:
        """Of a local policy (``agent.deployment.LocalPolicy``)."""
        known = [f.name for f in dataclasses.fields(cls) if f.name != "checkpoint_sha256"]
        return cls(**{name: getattr(policy, name) for name in known}, checkpoint_sha256=checkpoint_sha256)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the observations, by key."""
        shapes = {"state": (self.spec.state_steps, self.normalizer.obs_dim)}
        if self.spec.cameras:
            shapes["rgb"] = (self.spec.image_steps, 3 * len(self.spec.cameras), *self.spec.image_size)
        return shapes

    def message(self) -> dict[str, Any]:
        """As it is sent."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {"spec": dataclasses.asdict(self.spec), "normalizer": self.normalizer.to_dict()}
        return {"type": "hello", "protocol": PROTOCOL, **values}

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Greeting:
        """As it was received. Raises ``WireError``."""
        if field(message, "protocol", int) != PROTOCOL:
            raise WireError(
                f"the server speaks protocol {message['protocol']}, this is {PROTOCOL}: use one version of the code on both"
            )
        numbers = {
            name: field(message, name, int)
            for name in ("act_steps", "horizon_steps", "action_dim", "max_episode_steps")
        }
        spec = field(message, "spec", dict)
        names = {f.name for f in dataclasses.fields(ObservationSpec)}
        if not spec.keys() <= names or min(numbers.values()) < 1 or numbers["act_steps"] > numbers["horizon_steps"]:
            raise WireError(
                f"hello: expected a policy's sizes and {', '.join(sorted(names))}, found {numbers}, {sorted(spec)}"
            )
        spec = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()}
        try:
            normalizer = Normalizer.from_dict(field(message, "normalizer", dict))
            return cls(
                **numbers,
                spec=ObservationSpec(**spec),
                normalizer=normalizer,
                checkpoint_sha256=message.get("checkpoint_sha256"),
            )
        except (EnvError, TypeError) as error:
            raise WireError(f"hello: {error}") from error


class RemotePolicy:
    """A ``Policy`` (``types.py``) behind ``url`` (``ws://gpu:8000``), which is connected to at once.

    Args:
        timeout: seconds in which an answer must come; what comes later is thrown away.

    Attributes: those of the greeting (``act_steps, horizon_steps, action_dim, max_episode_steps, spec, normalizer,
    checkpoint_sha256``), ``infer_ms``: what the last inference took the server, NaN before.

    A connection that was lost is tried again by the next call, once; the server must then greet as before.

    Raises:
        DeploymentError: no websockets here, or no policy server there.
    """

    def __init__(self, url: str, timeout: float = 1.0) -> None:
        self._url, self._timeout, self._connection, self._id = url, timeout, None, 0
        self.infer_ms = float("nan")
        self._greeting: Greeting | None = None
        try:
            self._connect(_OPEN)
        except (PolicyError, WireError) as error:
            raise DeploymentError(
                f"policy.url: {error}. Start one: python script/serve_policy.py <checkpoint>"
            ) from error
        for entry in dataclasses.fields(self._greeting):
            setattr(self, entry.name, getattr(self._greeting, entry.name))

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """See ``Policy``. Raises ``PolicyError``."""
        answer = self._ask({"type": "infer", "observation": dict(observation)}, "actions")
        actions, timing = field(answer, "actions", np.ndarray), field(answer, "server_timing", dict)
        if (
            actions.ndim != 2
            or actions.shape[1] != self.action_dim
            or len(actions) < self.act_steps
            or actions.dtype.kind != "f"
        ):
            self.close()
            raise PolicyError(
                f"{self._url}: expected actions of shape (at least {self.act_steps}, {self.action_dim}), found {actions.shape} {actions.dtype}"
            )
        self.infer_ms = float(timing.get("infer_ms", float("nan")))
        return actions

    def reset(self, seed: int | None = None) -> None:
        """See ``Policy``. Raises ``PolicyError``."""
        self._ask({"type": "reset", "seed": seed}, "ready")

    def close(self) -> None:
        """Hang up, without waiting for the other side; may be repeated."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close_socket()

    def _ask(self, message: dict[str, Any], wanted: str) -> dict[str, Any]:
        """Send; the answer with the same id. Whatever goes wrong is a ``PolicyError``."""
        from websockets.exceptions import WebSocketException

        deadline = time.monotonic() + self._timeout
        self._id += 1
        try:
            if self._connection is None:
                self._connect(self._timeout)
            self._connection.send(pack({**message, "id": self._id}))
            while True:
                answer = unpack(self._connection.recv(max(0.0, deadline - time.monotonic())))
                if field(answer, "id", int) == self._id:
                    break  # any other is the late answer to a question that was given up
        except TimeoutError:
            raise PolicyError(f"{self._url}: no answer within {self._timeout:g} s") from None
        except (WebSocketException, OSError, WireError) as error:
            self.close()
            raise PolicyError(f"{self._url}: {error or type(error).__name__}") from error
        if answer["type"] != wanted:
            raise PolicyError(f"{self._url}: {answer.get('message') or answer['type']}")
        return answer

    def _connect(self, seconds: float) -> None:
        try:
            from websockets.exceptions import WebSocketException
            from websockets.sync.client import connect
        except ImportError as error:
            raise DeploymentError(
                f"a remote policy needs websockets ({error}): pip install -c constraints.txt -e '.[real]'"
            ) from error
        try:
            self._connection = connect(
                self._url, open_timeout=seconds, max_size=MAX_BYTES, compression=None, proxy=None
            )
            greeting = Greeting.read(unpack(self._connection.recv(seconds), "hello"))
        except (WebSocketException, OSError, WireError, ValueError) as error:  # TimeoutError is an OSError
            self.close()
            raise PolicyError(f"{self._url}: no policy server answers ({error or type(error).__name__})") from error
        if self._greeting is not None and not _same(greeting, self._greeting):
            self.close()
            raise PolicyError(f"{self._url}: it greets as another policy than before")
        self._greeting = greeting


def _same(a: Greeting, b: Greeting) -> bool:
    return pack(a.message()) == pack(b.message())
