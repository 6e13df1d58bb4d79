"""A fake Franka Panda on this machine, for people and for tests.

    python -m tests.fake_fci                         a robot at 127.0.0.1; type the words below, Ctrl-C ends it
    python script/deploy_franka.py ... robot=panda robot.ip=127.0.0.1

It moves, in real time, and speaks what libfranka 0.9 speaks: panda-python cannot tell the difference. Words it knows:
    reflex [name]    a reflex, cartesian_reflex by default       recover_refused [on|off]  recovery then needs a person
    user_stop        the button is pressed; release: let go      freeze, thaw              the network is silent
    drop N           lose the next N commands                    hang_up                   close the robot's connection
    push X Y Z       newtons on the hand, 0 0 0: none            thing W                   W m wide, between the fingers
    slow F           the gripper is F times slower               grasp_fails [on|off]
    version N        another server version from now on          report                    what it has seen, as JSON
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from tests.fake_fci.dynamics import NoCompilerError
from tests.fake_fci.server import FakeControlUnit


def obey(unit: FakeControlUnit, words: list[str]) -> dict | None:
    """One command. Its answer as a dictionary, None where the answer comes later."""
    word, *given = words
    on = given[:1] != ["off"]
    if word == "reflex":
        unit.abort(given[0] if given else "cartesian_reflex")
    elif word in ("user_stop", "release"):
        unit.user_stop(word == "user_stop")
    elif word in ("freeze", "thaw"):
        unit.faults.frozen = word == "freeze"
    elif word == "drop":
        unit.faults.drop = int(given[0])
    elif word == "hang_up":
        unit.hang_up()
    elif word == "push":
        unit.arm.push = np.array([*map(float, given), *[0.0] * (6 - len(given))])
    elif word == "place":  # for tests: stand at these joint positions
        unit.arm.q, unit.arm.dq = np.array([float(x) for x in given]), np.zeros(7)
    elif word == "thing":
        unit.hand.thing = float(given[0])
    elif word == "slow":
        unit.hand.slow = float(given[0])
    elif word == "grasp_fails":
        unit.hand.fails = on
    elif word == "recover_refused":
        unit.faults.recovery_refused = on
    elif word == "version":
        unit.faults.version = int(given[0])
    elif word == "advance":  # for tests: time halts, N milliseconds pass, the answer comes when they have
        unit.permits, unit.lockstep = int(given[0]), True
        return None
    elif word == "run":  # time runs again
        unit.permits = None
    elif word != "report":
        return {"error": f"{word!r} is no command; python -m tests.fake_fci --help lists them"}
    return unit.report() if word == "report" else {"ok": word}


def waits(unit: FakeControlUnit) -> bool:
    """Whether an ``advance`` is still under way. It ends with the motion, too."""
    motion = unit.motion
    return motion is not None and (unit.permits != 0 or not motion.answered)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (127.x.x.x)")
    parser.add_argument("--lockstep", action="store_true", help="wait for the client: for a machine that is too busy")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds to wait for it, at most")
    parser.add_argument("--piped", action="store_true", help="for programs: end when the standard input does")
    args = parser.parse_args()
    try:
        unit = FakeControlUnit(args.host, args.lockstep, args.patience)
    except NoCompilerError as error:
        sys.stdout.write(json.dumps({"no_compiler": str(error)}) + "\n")
        return 3
    except OSError as error:
        sys.stderr.write(f"{args.host}: ports 1337 and 1338 cannot be had ({error}); is another fake running?\n")
        return 2
    sys.stdout.write(json.dumps({"ready": args.host}) + "\n")
    sys.stdout.flush()
    return loop(unit, args.piped)


def loop(unit: FakeControlUnit, piped: bool) -> int:
    """Until the input ends (piped), or Ctrl-C."""
    source, pending, listening = sys.stdin, False, (sys.stdin,)
    try:
        while True:
            if unit.serve(unit.due(), listening):
                line = source.readline()
                if not line:
                    if piped:
                        return 0
                    listening = ()
                elif line.split():
                    answer = obey(unit, line.split())
                    pending = pending or answer is None
                    if answer is not None:
                        sys.stdout.write(json.dumps(answer) + "\n")
                        sys.stdout.flush()
            if unit.due() == 0.0:
                unit.tick()
            else:
                unit.linger()
            if pending and not waits(unit):
                pending = False
                sys.stdout.write(json.dumps(unit.report()) + "\n")
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
