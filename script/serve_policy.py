"""Serve a policy to robots over a websocket, from a machine with a GPU.

    python script/serve_policy.py FILE                              # on 127.0.0.1:8000: for this machine, or through a tunnel
    python script/serve_policy.py FILE --host 0.0.0.0 --port 9000   # for everybody who reaches this machine: no password, no encryption

On the robot's side: script/deploy_franka.py ... policy=remote policy.url=ws://<this machine>:8000. What a deployment has to know of the
policy (sizes, keys, normaliser) is sent by the server: the checkpoint stays here. GET /healthz says ok. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.errors import UsageError  # noqa: E402
from env.errors import EnvError  # noqa: E402


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="FILE", help="of a policy for a robomimic task")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0: a free one")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<i>")
    parser.add_argument("--ddim-steps", type=int, help="denoise in so many DDIM steps (default: as trained)")
    parser.add_argument("--act-steps", type=int, help="actions executed of each chunk (default: as trained)")
    parser.add_argument(
        "--normalization", metavar="NPZ", help="normalization.npz of a published checkpoint, which carries none"
    )
    return parser.parse_args(argv)


def serve(args: argparse.Namespace) -> None:
    """Load, warm up, serve until interrupted. Raises ``UsageError``, ``EnvError``."""
    import numpy as np

    from agent.deployment import LocalPolicy
    from env.franka.policy_server import PolicyServer
    from env.franka.recording import checksum
    from env.franka.remote import Greeting
    from env.normalizer import Normalizer

    normalizer = None if args.normalization is None else Normalizer.load(args.normalization)
    policy = LocalPolicy(
        args.checkpoint, device=args.device, ddim_steps=args.ddim_steps, act_steps=args.act_steps, normalizer=normalizer
    )
    greeting = Greeting.of(policy, checksum(Path(args.checkpoint)))
    policy({key: np.zeros(shape, np.uint8 if key == "rgb" else np.float32) for key, shape in greeting.shapes().items()})
    policy.reset()
    server = PolicyServer(policy, greeting, args.host, args.port)
    sys.stdout.write(f"{args.checkpoint}: {greeting.spec.task}, serving at ws://{args.host}:{server.port}\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.stdout.write("ended\n")
    finally:
        server.close()


def main(argv: list[str] | None = None) -> None:
    """Entry point; exit code 2 for a mistake a person can mend."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        serve(parse(argv))
    except (UsageError, EnvError) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
