"""Start, render on threads, exit: does every cycle end with exit code 0?

    python script/bench/render_cycles.py 100
    python script/bench/render_cycles.py 50 --renderer native --pools 20
    python script/bench/render_cycles.py 1000 --renderer native --forked

OpenGL likes to crash when a process ends. Each cycle is a process of its own that opens two render threads (``--pools`` times), draws, and
ends: in turn after ``close``, without it, and by an exception. Exit code 0 when every cycle did as it should, 1 otherwise. ``--forked``:
processes are forks of one that has drawn before (OpenGL does not survive that), which spares each the start of Python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
_CYCLE = """
import sys
import mujoco
import numpy as np
from env.engine.cameras import CameraPool, pose_of

XML = '''<mujoco><worldbody><light pos="0 0 3" castshadow="false"/><geom type="plane" size="1 1 .1" group="1"/>
<body pos="0 0 .3"><freejoint/><geom type="sphere" size=".2" rgba="1 0 0 1" group="1"/></body>
<camera name="eye" pos="0 -2 1" xyaxes="1 0 0 0 .5 1"/></worldbody></mujoco>'''

class Ball:
    name, own_models, model = "ball", False, mujoco.MjModel.from_xml_string(XML)

    def render_model(self):
        return mujoco.MjModel.from_xml_string(XML)

data = mujoco.MjData(Ball.model)
mujoco.mj_forward(Ball.model, data)
if sys.argv[5:]:  # forks of this one, which has drawn
    import os
    pool = CameraPool(Ball(), ["eye"], (96, 96), sys.argv[1], 2, sys.argv[3])
    pool.render(pose_of(data)[None], [()], [np.zeros(pool.image_shape, np.uint8)])
    for k in range(int(sys.argv[5])):
        if not (child := os.fork()):
            sys.argv[1:3] = ("faithful", "balanced", "fast")[k // 3 % 3], ("close", "leave", "raise")[k % 3]
            sys.stderr = open(os.devnull, "w")
            break
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(k, code, flush=True)
    else:
        sys.exit()
for left in reversed(range(int(sys.argv[4]))):
    pool = CameraPool(Ball(), ["eye"], (96, 96), sys.argv[1], 2, sys.argv[3])
    images = np.zeros((8, *pool.image_shape), np.uint8)
    pool.render(np.stack([pose_of(data)] * 8), [()] * 8, list(images))
    assert images.std() > 5 and (images == images[0]).all()
    if left:
        pool.close()
if sys.argv[2] == "close":
    pool.close()
if sys.argv[2] == "raise":
    sys.exit("as it should")
"""


def cycle(k: int, renderer: str, pools: int) -> str:
    """Run the ``k``-th cycle, of ``pools`` pools; returns what went wrong, or nothing."""
    quality, end = ("faithful", "balanced", "fast")[k // 3 % 3], ("close", "leave", "raise")[k % 3]
    done = subprocess.run(
        [sys.executable, "-c", _CYCLE, quality, end, renderer, str(pools)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    expected, said = (1, "as it should") if end == "raise" else (0, "")
    if done.returncode == expected and done.stderr.strip() == said:
        return ""
    return f"cycle {k} ({quality}, {end}): exit code {done.returncode}, {done.stderr.strip()[-300:] or 'no message'}"


def forks(n: int, renderer: str, pools: int) -> list[str]:
    """Run ``n`` cycles, each a fork of one process that has drawn; returns what went wrong."""
    command = [sys.executable, "-c", _CYCLE, "balanced", "close", renderer, str(pools), str(n)]
    wrong, ended = [], 0
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in tqdm(process.stdout, total=n, unit="cycle"):
            k, code = map(int, line.split())
            ended += 1
            if code != (k % 3 == 2):
                wrong.append(f"cycle {k}: exit code {code}")
    return wrong + [f"{n - ended} cycles did not end: exit code {process.returncode}"] * (ended < n)


def main(argv: list[str] | None = None) -> int:
    """All cycles, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n", type=int, nargs="?", default=100, help="processes (default 100)")
    parser.add_argument("--renderer", default="gl", help="gl (default), native, egl or osmesa")
    parser.add_argument("--pools", type=int, default=1, help="per process (default 1)")
    parser.add_argument("--forked", action="store_true", help="forks of one process that has drawn; native only")
    args = parser.parse_args(argv)
    n, begin = args.n, time.monotonic()
    if args.forked:
        wrong = forks(n, args.renderer, args.pools)
    else:
        wrong = [problem for k in tqdm(range(n), unit="cycle") if (problem := cycle(k, args.renderer, args.pools))]
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    print(f"{n - len(wrong)} of {n} cycles ended as they should ({time.monotonic() - begin:.0f} s)")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
