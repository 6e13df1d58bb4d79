"""The main job on two cores: demonstrations -> pre-training -> PPO fine-tuning -> evaluation. Lift takes minutes, the others more.

    bash script/quickstart.sh                       # Lift; does its own set-up first
    bash script/quickstart.sh task=can              # or square, transport; from camera images: lift-img, can-img
    python script/quickstart.py seed=1 out=log/quickstart/seed_1

Each stage is an ordinary command of this project, printed before it runs. Interrupted? Run it again: finished stages are kept, the one
that was cut off resumes exactly where it stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Recipe:
    """How a task is learned on two cores; with ``-img`` behind its name, from camera images."""

    leaf: str  # of cfg/robomimic/{pretrain,finetune}/<task>
    demonstrations: int
    collect: tuple[str, ...] = ()  # further arguments of script/collect_demos.py
    tune: str | None = None  # the leaf of fine-tuning, where it has another name
    note: str = "the demonstrations are scripted: not the papers' numbers"


RECIPES = {
    "lift": Recipe(
        "quickstart",
        160,
        note="the demonstrations are scripted, episodes last 100 control steps: not the papers' numbers",
    ),
    "can": Recipe("two_cores", 400),
    "square": Recipe("two_cores", 400, ("--noise=0.5",)),
    "transport": Recipe("two_cores", 500, ("--noise=0.4",), tune="two_cores_steer"),
    "lift-img": Recipe("two_cores_img", 200, ("--images",)),
    "can-img": Recipe("two_cores_img", 300, ("--images",)),
}


def main(argv: list[str] | None = None) -> int:
    """Run what is not done yet, then show the result. ``task=``, ``seed=<n>`` and ``out=<folder>`` are ours, the rest overrides fine-tuning."""
    argv = sys.argv[1:] if argv is None else argv
    if any(a in {"-h", "--help"} for a in argv):
        sys.stdout.write(__doc__)
        return 0
    ours = ("task=", "seed=", "out=")
    given = dict(a.split("=", 1) for a in argv if a.startswith(ours))
    task, seed = given.get("task", "lift"), given.get("seed", "0")
    if task not in RECIPES or not seed.isdecimal():
        wrong = f"task: expected one of {', '.join(RECIPES)}, found {task!r}" if task not in RECIPES else ""
        sys.stderr.write(f"error: {wrong or f'seed: expected a number, found {seed!r}'}\n")
        return 2
    recipe, overrides = RECIPES[task], [a for a in argv if not a.startswith(ours)]
    folder = "quickstart" if task == "lift" else f"quickstart_{task}"
    out = Path(given.get("out", Path(os.environ.get("DPPO_LOG_DIR", "log")) / folder / f"seed_{seed}")).absolute()
    started = time.monotonic()
    data = out / "data"
    if not (data / "robomimic" / task / "train.npz").exists():
        demos = [
            f"--task={task.removesuffix('-img')}",
            f"--episodes={recipe.demonstrations}",
            f"--seed={seed}",
            f"--out={data}",
        ]
        stage("1/3  demonstrations from a scripted expert", ["script/collect_demos.py", *demos, *recipe.collect])
    common = [f"seed={seed}", "wandb=null", f"data_root={data}"]
    pretrain, finetune = out / "pretrain", out / "finetune"
    if not (pretrain / "result.json").exists():
        title = "2/3  pre-training with the dispersive loss" if task == "lift" else "2/3  pre-training"
        stage(title, run(task, "pretrain", pretrain, common))
    if not (finetune / "result.json").exists():
        base = f"base_policy_path={newest(pretrain)}"
        title = f"3/3  fine-tuning with PPO over the {'start noise' if recipe.tune else 'denoising chain'}"
        stage(title, run(task, "finetune", finetune, [*common, base, *overrides]))
    report(task, out, time.monotonic() - started)
    return 0


def run(task: str, name: str, logdir: Path, overrides: list[str]) -> list[str]:
    """The command of a stage; it goes on where an earlier attempt was cut off."""
    go_on = ["resume=true"] if logdir.exists() else []
    recipe = RECIPES[task]
    chosen = recipe.tune if name == "finetune" and recipe.tune else recipe.leaf
    leaf = [f"--config-dir=cfg/robomimic/{name}/{task.removesuffix('-img')}", f"--config-name={chosen}"]
    return ["script/run.py", *leaf, f"logdir={logdir}", *go_on, *overrides]


def newest(run_dir: Path) -> Path:
    """The last numbered checkpoint of a run."""
    return max((run_dir / "checkpoint").glob("state_*.pt"), key=lambda p: int(p.stem.removeprefix("state_")))


def stage(title: str, command: list[str]) -> None:
    """Show and run one command; its failure ends everything."""
    sys.stdout.write(f"\n== {title}\n$ python {shlex.join(command)}\n")
    sys.stdout.flush()
    started = time.monotonic()
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code:
        sys.stderr.write(f"\n{title} ended with exit code {code}; run the quickstart again to go on from there\n")
        sys.exit(code)
    sys.stdout.write(f"   took {time.monotonic() - started:.0f} s\n")


def report(task: str, out: Path, seconds: float) -> None:
    """Before and after, and where to look."""
    result = json.loads((out / "finetune" / "result.json").read_text())
    lines = []
    for label, key in (("before (pre-trained)", "before"), ("after  (fine-tuned) ", "after")):
        low, high = result[key]["success_interval"]
        lines.append(f"  {label}  success {result[key]['success_rate']:.4f}   95 % interval [{low:.3f}, {high:.3f}]")
    n, first = len(result["after"]["seeds"]), result["after"]["seeds"][0]
    look = {
        "learning curve": result["learning_curve"],
        "video": result["video"] or "none: no renderer here (see the message above for what to install)",
        "figures": out / "finetune" / "result.json",
        "checkpoint": result["checkpoint"],
    }
    sys.stdout.write(
        f"\n== {task.capitalize()}, the same episodes before and after: "
        f"{n} recorded seeds ({first} ...) that training never used\n" + "\n".join(lines) + "\n"
        f"  {result['env_steps']:,} environment steps, {result['wall_seconds'] / 60:.1f} min of fine-tuning, {seconds / 60:.1f} min in all\n"
        f"  ({RECIPES[task].demonstrations} demonstrations; {RECIPES[task].note})\n\n"
        + "\n".join(f"  {name:<15} {path}" for name, path in look.items())
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
