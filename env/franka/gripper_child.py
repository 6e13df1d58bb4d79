"""The Franka hand in a process of its own: ``python -m env.franka.gripper_child <ip>``, for ``robot_panda.PandaGripper``.

panda_py reads the hand's state with the interpreter locked, until the hand speaks: up to 33 ms in which no thread of the process runs, a
servo's included. So that happens here. Lines of JSON: in, ``[number, "goto" | "grasp" | "stop", width or force, speed]``; out, states as
``{"width", "max_width", "grasped"}`` and answers as ``{"done": number, "ok", "error"}``. Ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

_out = threading.Lock()


def say(**message: Any) -> None:
    """One line."""
    with _out:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def obey(hand: Any, number: int, word: str, amount: float, speed: float) -> None:
    """One command, however long it takes."""
    try:
        if word == "goto":
            ok = hand.move(amount, speed)
        elif word == "grasp":  # anything between the fingers will do
            ok = hand.grasp(0.0, speed, amount, 0.08, 0.08)
        else:
            ok = hand.stop()
        say(done=number, ok=bool(ok), error="")
    except RuntimeError as error:
        say(done=number, ok=False, error=str(error))


def watch(hand: Any) -> None:
    """Pass on every state; a network that is lost ends the process."""
    try:
        while True:
            state = hand.read_once()
            say(width=state.width, max_width=state.max_width, grasped=bool(state.is_grasped))
    except RuntimeError as error:
        say(lost=str(error))
        os._exit(1)  # threads may still wait for the hand


def main() -> None:
    """Entry point."""
    from panda_py import libfranka

    try:
        hand = libfranka.Gripper(sys.argv[1])
    except RuntimeError as error:
        say(lost=str(error))
        return
    threading.Thread(target=watch, args=(hand,), daemon=True).start()
    for line in sys.stdin:
        threading.Thread(target=obey, args=(hand, *json.loads(line)), daemon=True).start()
    os._exit(0)


if __name__ == "__main__":
    main()
