"""Does anything explode? Episodes of Furniture-Bench's tasks (our re-implementation) with the scripted expert, with an expert whose hand is
carried off now and then, and with random hands, in turn.

    python script/check_furniture.py one_leg_med --episodes 84
    python script/check_furniture.py lamp_low --episodes 84 --first-seed 20084 --json lamp_low.json

An episode is unstable where the simulation was cut (NaN, bad states), MuJoCo warned, a part flew faster than 15 m/s or was more than 5 mm below the
table, judged after every control step. One process, one thread: run several beside each other with other --first-seed's. Ends with code 1 where
any episode was unstable.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from agent.eval.statistics import wilson_interval  # noqa: E402
from agent.files import atomic_write  # noqa: E402
from env.engine.batch import EngineVectorEnv  # noqa: E402
from env.furniture import assembly  # noqa: E402
from env.furniture.facts import POSE, ROBOT_STATE, TAG_TO_ROBOT, TASKS, euler  # noqa: E402
from env.registry import EXPERTS  # noqa: E402

HANDS = ("expert", "disturbed", "random")
FASTEST, DEEPEST = 15.0, -0.005  # m/s; m, of a part's origin
SLOTS = 8
_BURST_CHANCE, _BURST = 0.02, (3, 15)  # per control step; how many the disturbed hand is carried off for


class Vandal:
    """Goals near a part or anywhere, upright or not, gripper open or closed, kept for a while: (n, D) observations -> (n, 10) actions."""

    def __init__(self, n: int, n_parts: int, rng: np.random.Generator) -> None:
        self.rng, self.n_parts, self.left, self.goal = rng, n_parts, np.zeros(n, int), np.zeros((n, 10))

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The next actions."""
        for row in np.flatnonzero(self.left == 0):
            self.goal[row], self.left[row] = self._draw(obs[row]), self.rng.integers(3, 25)
        self.left -= 1
        return self.goal.copy()

    def _draw(self, row: np.ndarray) -> np.ndarray:
        rng, at = self.rng, ROBOT_STATE + POSE * self.rng.integers(self.n_parts)
        place = TAG_TO_ROBOT[1] @ row[at : at + 3] + TAG_TO_ROBOT[0] + rng.normal(size=3) * (0.02, 0.02, 0.03)
        if rng.random() < 0.3:
            place = rng.uniform((0.3, -0.35, 0.0), (0.75, 0.35, 0.3))
        tilt = (180.0, 0.0) if rng.random() < 0.8 else rng.uniform(-180, 180, 2)
        turn = euler(*tilt, rng.uniform(-180, 180))
        return np.concatenate([place, turn[:2].ravel(), [rng.choice((-1.0, 1.0))]])


class Watch:
    """What the parts of every slot have been through: ``speed (n,)`` m/s at most, ``depth (n,)`` m at least, ``warned (n,)``."""

    def __init__(self, venv: EngineVectorEnv) -> None:
        self._data, model, parts = venv.simulations.data, venv.simulations.models[0], venv.family.furniture.parts
        self._heights = [model.joint(part).qposadr[0] + 2 for part in parts]
        self._speeds = [model.joint(part).dofadr[0] + i for part in parts for i in range(3)]
        self.speed, self.depth, self.warned = np.zeros(venv.n_envs), np.zeros(venv.n_envs), np.zeros(venv.n_envs, bool)

    def look(self, rows: np.ndarray) -> None:
        """Judge these slots as they are now; to be called after every control step."""
        for i in rows:
            data = self._data[i]
            self.speed[i] = np.maximum(self.speed[i], np.abs(data.qvel[self._speeds]).max())
            self.depth[i] = np.minimum(self.depth[i], data.qpos[self._heights].min())
            self.warned[i] |= any(warning.number for warning in data.warning)

    def broken(self) -> np.ndarray:
        """Which slots have gone beyond a limit: (n,) bool."""
        return self.warned | ~(self.speed < FASTEST) | ~(self.depth > DEEPEST)

    def forget(self, rows: np.ndarray) -> None:
        """New episodes begin in these slots."""
        self.speed[rows], self.depth[rows], self.warned[rows] = 0.0, 0.0, False


@dataclass
class Tally:
    """Episodes played, solved and unstable, by hand; the seeds of those unstable."""

    task: str
    first_seed: int
    played: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HANDS, 0))
    solved: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HANDS, 0))
    unstable: dict[str, list[int]] = field(default_factory=lambda: {hand: [] for hand in HANDS})


def play(task: str, episodes: int, first_seed: int, steps: int | None = None, n_envs: int = SLOTS) -> Tally:
    """Episodes ``first_seed, first_seed + 1, ...`` of a task; the k-th one by hand ``HANDS[k % 3]``.

    Args:
        steps: control steps an episode may take; None: the task's own. n_envs: simulations side by side; part of what a seed means.
    """
    entry, family = EXPERTS[task], assembly.family(f"{task}_dim")
    n, rng, tally = min(n_envs, episodes), np.random.default_rng(first_seed), Tally(task, first_seed)
    venv = EngineVectorEnv(family, n, 1, steps or entry.steps, n_threads=1, end_on_success=True)
    expert, vandal = entry.make(n, rng, entry.noise, True), Vandal(n, len(family.furniture.parts), rng)
    obs, burst = venv.reset([first_seed + k for k in range(episodes)])["state"][:, 0], np.zeros(n, int)
    watch, bar = Watch(venv), tqdm(total=episodes, desc=task, unit="episode")
    while ((seeds := venv.seeds()) >= 0).any():
        hand = (seeds - first_seed) % len(HANDS)
        begins = (burst == 0) & (rng.random(n) < _BURST_CHANCE)
        burst = np.where(begins, rng.integers(*_BURST, n), np.maximum(burst - 1, 0))
        wild = (hand == 2) | ((hand == 1) & (burst > 0))
        action = np.where(wild[:, None], vandal.act(obs), expert.act(obs))
        result = venv.step(action[:, None].astype(np.float32))
        going = seeds >= 0
        over = going & (result.terminated | result.truncated)
        watch.look(np.flatnonzero(going & ~over))  # where it is over, the next one has begun already
        broken = watch.broken() | result.info["invalid"] | ~np.isfinite(result.final_obs["state"]).all((1, 2))
        for i in np.flatnonzero(over):
            name = HANDS[hand[i]]
            tally.played[name] += 1
            tally.solved[name] += bool(result.success[i])
            if broken[i]:
                tally.unstable[name].append(int(seeds[i]))
        watch.forget(np.flatnonzero(over))
        expert.reset_rows(over)
        obs = result.obs["state"][:, 0].copy()
        bar.update(int(over.sum()))
        bar.set_postfix(unstable=sum(map(len, tally.unstable.values())), refresh=False)
    bar.close()
    venv.close()
    return tally


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS), help="task and randomness")
    parser.add_argument("--episodes", type=int, default=30, help="a third by each hand (default 30)")
    parser.add_argument("--first-seed", type=int, default=20000, help="of the first episode (default 20000)")
    parser.add_argument("--steps", type=int, help="control steps an episode may take (default: the task's own)")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args(argv)
    if args.episodes < 1 or args.first_seed < 0 or (args.steps is not None and args.steps < 1):
        parser.error("--episodes and --steps must be at least 1, --first-seed at least 0")
    tally = play(args.task, args.episodes, args.first_seed, args.steps)
    bad = [seed for seeds in tally.unstable.values() for seed in seeds]
    low, high = wilson_interval(len(bad), args.episodes)
    for name in HANDS:
        print(
            f"{args.task}, {name}: {tally.played[name]} episodes, {tally.solved[name]} solved, unstable: {tally.unstable[name] or 'none'}"
        )
    print(f"{args.task}: {len(bad)} of {args.episodes} episodes unstable [{low:.3f}, {high:.3f}]")
    if args.json:
        with atomic_write(args.json) as file:
            file.write(json.dumps(asdict(tally), indent=1).encode())
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
