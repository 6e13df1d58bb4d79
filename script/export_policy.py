"""Write a policy for other programs, and check what was written.

    python script/export_policy.py --to published    .../checkpoint/state_300.pt    # DPPO's and D2PPO's own layout, with normalization.npz
    python script/export_policy.py --to safetensors  .../checkpoint/state_300.pt    # model.safetensors and config.json
    python script/export_policy.py --to onnx         .../checkpoint/state_300.pt    # the whole sampler, normalisation included
    python script/export_policy.py --to torch_export .../checkpoint/state_300.pt    # the same as torch.export's .pt2

The last two take observations in the task's own units and standard normal numbers, and return action chunks in the task's own units
(agent/export.py says which inputs); they are compared with what an evaluation does and timed (one observation, one core;
times of a busy machine: trust the CPU's). ONNX needs
`pip install -e .[export]`. A folder written by safetensors is read wherever a checkpoint is. Published checkpoints: --config says with
what YAML they were trained, unless it lies beside them. Exit code 1: the export does not agree with the policy.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from agent import checkpoint, export, portable  # noqa: E402
from agent.errors import UsageError  # noqa: E402
from agent.policy_weights import CHOICES, read_config  # noqa: E402
from env.errors import EnvError  # noqa: E402
from env.normalizer import Normalizer  # noqa: E402
from model.types import ShapeError, StateDictError  # noqa: E402

TOLERANCE = 1e-5  # of a unit action, in which the whole range is 2; unless float32's own rounding is larger
SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", help="a checkpoint, ours or a published one, or a folder written by --to safetensors"
    )
    parser.add_argument("--to", required=True, choices=("published", "safetensors", *SUFFIX))
    parser.add_argument("--out", help="file or (safetensors) folder; default: beside the checkpoint, by its name")
    parser.add_argument("--config", help="YAML of a published checkpoint's policy")
    parser.add_argument("--normalization", help="normalization.npz, for a checkpoint without statistics")
    parser.add_argument(
        "--weights", choices=CHOICES, help="base or finetuned, ema or model (default: the best there is)"
    )
    parser.add_argument("--ddim-steps", type=int, help="sample with DDIM in so many steps")
    parser.add_argument("--repeats", type=int, default=200, help="timed calls (default 200; 0: no timing)")
    parser.add_argument("--json", action="store_true", help="the report for programs")
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> Any:
    """The policy, with its normaliser."""
    config = None if args.config is None else read_config(Path(args.config).expanduser())
    overrides = {"use_ddim": True, "ddim_steps": args.ddim_steps} if args.ddim_steps else None
    policy = checkpoint.load_policy(args.checkpoint, config, policy_weights=args.weights, overrides=overrides)
    if args.normalization is not None:
        policy.normalizer = Normalizer.load(args.normalization)
    return policy


def write_published(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The published layout; statistics go beside it, as published."""
    payload = checkpoint.load(args.checkpoint)
    portable.write_published(out, payload)
    report: dict[str, Any] = {"file": str(out)}
    statistics = checkpoint.normalizer(payload)
    if statistics is not None:
        statistics.save(out.parent / "normalization.npz")
        report["normalization"] = str(out.parent / "normalization.npz")
    return report


def write_safetensors(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The folder, which is then loaded again and must be the same policy."""
    policy, payload = load(args), checkpoint.load(args.checkpoint)
    stored = payload | {
        "format": checkpoint.FORMAT,
        "format_version": checkpoint.FORMAT_VERSION,
        "config": policy.config,
    }
    if policy.normalizer is not None:
        stored["normalizer"] = policy.normalizer.to_dict()
    portable.write_folder(out, stored, policy.state_dict())
    back = checkpoint.load_policy(out)
    if any(not value.equal(back.state_dict()[key]) for key, value in policy.state_dict().items()):
        raise UsageError(f"{out}: what was written is not what was read")
    return {"folder": str(out)}


def write_sampler(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """ONNX or torch.export, with the comparison and the times."""
    policy = load(args)
    config = policy.config
    sampler = export.Sampler(policy, int(config.get("cond_steps") or 1))
    about = {key: config.get(key) for key in ("env_name", "act_steps", "horizon_steps", "cond_steps") if key in config}
    about |= {"checkpoint": Path(args.checkpoint).name, "units": "task" if policy.normalizer is not None else "[-1, 1]"}
    if args.to == "onnx":
        export.export_onnx(sampler, out, about)
        run = export.onnx_session(out)
    else:
        export.export_torch(sampler, out)
        run = export.torch_module(out)
    here = export.in_evaluation(policy)
    report = {
        "file": str(out),
        **about,
        "difference": export.largest_difference(run, here, sampler),
        "tolerance": TOLERANCE,
    }
    if (
        report["difference"] > TOLERANCE
    ):  # can float32 tell at all? Untrained image policies magnify its rounding that far
        exact = export.in_evaluation(policy, torch.float64)
        report["rounding"] = export.largest_difference(here, exact, sampler)
        report["tolerance"] = max(TOLERANCE, 2 * report["rounding"])
    if args.repeats > 0:
        name = "onnxruntime" if args.to == "onnx" else "torch.export"
        report["latency"] = [
            {"with": label, **vars(export.latency(call, sampler, args.repeats))}
            for label, call in ((name, run), ("torch, as in an evaluation", here))
        ]
    return report


def tell(report: dict[str, Any]) -> str:
    """The report for a person."""
    numbers = ("latency", "difference", "tolerance", "rounding")
    lines = [f"{key:<14} {value}" for key, value in report.items() if key not in numbers]
    if "difference" in report:
        verdict = "agrees" if report["difference"] <= report["tolerance"] else "DOES NOT AGREE"
        lines.append(
            f"{verdict} with the policy: largest difference {report['difference']:.1e} of a unit action (at most {TOLERANCE:.0e})"
        )
    if "rounding" in report:
        lines.append(
            f"float32 itself is off by {report['rounding']:.1e} with these weights: up to twice that is allowed"
        )
    timed = "{wall:8.3f} ms wall {cpu:8.3f} ms CPU   per chunk, one core, median of {repeats}   {with}"
    lines += [timed.format(**row) for row in report.get("latency", ())]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Entry point; exit code 2 for a mistake a person can mend, 1 where the export does not agree."""
    args = parse(argv)
    source = Path(args.checkpoint).expanduser()
    default = source.with_name(f"{source.stem}_published.pt" if args.to == "published" else source.stem)
    out = (
        Path(args.out).expanduser()
        if args.out
        else default.with_suffix(SUFFIX[args.to])
        if args.to in SUFFIX
        else default
    )
    write = {"published": write_published, "safetensors": write_safetensors}.get(args.to, write_sampler)
    try:
        report = write(args, out)
    except (UsageError, EnvError, ShapeError, StateDictError, OSError) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    sys.stdout.write((json.dumps(report, indent=2) if args.json else tell(report)) + "\n")
    if report.get("difference", 0.0) > report.get("tolerance", TOLERANCE):
        sys.exit(1)


if __name__ == "__main__":
    main()
