"""A policy for robots elsewhere: the server's side of ``remote.py``. ``GET /healthz`` says ``ok`` while it serves."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np

from env.franka.remote import Greeting
from env.franka.types import DeploymentError, Policy
from env.franka.wire import MAX_BYTES, WireError, field, pack, unpack

log = logging.getLogger(__name__)


class PolicyServer:
    """Serves ``policy`` on ``host:port`` (port 0: a free one, then in ``port``) from ``serve_forever`` on.

    Several robots may be connected; one is answered at a time. What a client sends wrong is answered by an ``error`` that names it; what
    the policy raises, too. There is no encryption and no password: across machines, in a network of one's own or through a tunnel.

    Raises:
        DeploymentError: no websockets here, or the address is taken.
    """

    def __init__(self, policy: Policy, greeting: Greeting, host: str = "127.0.0.1", port: int = 8000) -> None:
        try:
            from websockets.sync.server import serve
        except ImportError as error:
            raise DeploymentError(
                f"a policy server needs websockets ({error}): pip install -c constraints.txt -e '.[real]'"
            ) from error
        self._policy, self._greeting, self._lock = policy, greeting, threading.Lock()
        self._clients: set[Any] = set()
        try:
            self._server = serve(
                self._serve, host, port, process_request=_health, origins=[None], compression=None, max_size=MAX_BYTES
            )  # no browser, whatever page it shows, may connect
        except OSError as error:
            raise DeploymentError(
                f"{host}:{port} cannot be served ({error.strerror or error}); another port?"
            ) from error
        self.port: int = self._server.socket.getsockname()[1]

    def serve_forever(self) -> None:
        """Until ``close``."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stop, hang up on everybody; from any thread, repeatedly."""
        self._server.shutdown()
        for client in list(self._clients):
            client.close_socket()

    def _serve(self, client: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        self._clients.add(client)
        who = client.remote_address
        log.info("%s: connected", who)
        try:
            client.send(pack(self._greeting.message()))
            for data in client:
                client.send(pack(self._answer(data)))
        except (ConnectionClosed, OSError) as error:
            log.info("%s: gone (%s)", who, error)
        finally:
            self._clients.discard(client)

    def _answer(self, data: bytes | str) -> dict[str, Any]:
        number = -1
        try:
            message = unpack(data)
            number = field(message, "id", int)
            if message["type"] == "infer":
                return {"type": "actions", "id": number, **self._infer(field(message, "observation", dict))}
            if message["type"] == "reset":
                seed = field(message, "seed", (int, type(None)))
                with self._lock:
                    self._policy.reset(seed)
                return {"type": "ready", "id": number}
            raise WireError(f"expected a message of type 'infer' or 'reset', found {message['type'][:40]!r}")
        except WireError as error:
            log.warning("refused: %s", error)
            return {"type": "error", "id": number, "message": f"refused: {error}"}
        except Exception as error:  # noqa: BLE001  the policy's own: the server outlives it, and the robot hears of it
            log.exception("the policy failed")
            return {"type": "error", "id": number, "message": f"the policy failed: {type(error).__name__}: {error}"}

    def _infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        expected = self._greeting.shapes()
        found = {key: getattr(value, "shape", None) for key, value in observation.items()}
        if found != expected:
            raise WireError(f"infer: observation: expected arrays of shape {expected}, found {found}")
        if observation["state"].dtype.kind != "f" or not np.isfinite(observation["state"]).all():
            raise WireError("infer: observation: state: expected finite numbers")
        if "rgb" in observation and observation["rgb"].dtype != np.uint8:
            raise WireError(f"infer: observation: rgb: expected uint8, found {observation['rgb'].dtype}")
        with self._lock:
            start = time.perf_counter()
            actions = np.asarray(self._policy(observation))
            took = time.perf_counter() - start
        return {"actions": actions, "server_timing": {"infer_ms": took * 1e3}}


def _health(connection: Any, request: Any) -> Any:
    if request.path == "/healthz":
        return connection.respond(200, "ok\n")
    return None if request.path == "/" else connection.respond(404, "a policy is served at /\n")
