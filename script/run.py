"""Run one configuration: pre-train, fine-tune or evaluate a policy.

    python script/run.py --config-name=<method> --config-dir=cfg/<suite>/<stage>/<task> [key=value ...]

    python script/run.py --config-name=pre_diffusion_mlp_dispersive --config-dir=cfg/robomimic/pretrain/lift wandb=null
    python script/run.py --config-name=ft_ppo_diffusion_mlp --config-dir=cfg/robomimic/finetune/lift base_policy_path=<checkpoint>
    python script/run.py --config-name=eval_diffusion_mlp --config-dir=cfg/robomimic/eval/lift base_policy_path=<checkpoint>

The files of a DPPO or D2PPO checkout (--config-dir=<checkout>/cfg/...) run as they are; what is translated is printed.

Useful: --cfg job --resolve (print the composed configuration), --info defaults-tree (where each part comes from), -m seed=1,2,3 (several
runs), resume=<run directory> (go on exactly where a killed run stopped).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before torch: its threads must sleep while simulations use the cores. Pre-training has none, nor has a leaf that distils, and there they must
# not: two threads were no faster than one (3 x 512, batch 256, two cores: 4.7 s per epoch, and 2.9 s with threads that wait awake).
if not re.search(r"(--config-dir|-cd)[ =]\S*\bpretrain\b|(--config-name|-cn)[ =]\S*_distil\b", " ".join(sys.argv[1:])):
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent
CFG = ROOT / "cfg"
sys.path.insert(0, str(ROOT))  # works right after `git clone`, without an installation

import hydra  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra._internal.utils import get_args_parser  # noqa: E402
from hydra.core.global_hydra import GlobalHydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.errors import CompactHydraException  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from agent import compat  # noqa: E402
from agent.config import all_keys, register_resolvers, unknown_key, validate  # noqa: E402
from agent.errors import UsageError  # noqa: E402

register_resolvers()


def execute(cfg: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Check a composed configuration and run what it describes; returns what its ``result.json`` holds.

    Args:
        overrides: as they were typed; the files of a published checkout are translated with them.
    """
    cfg = compat.adapt(cfg, list(overrides))
    validate(cfg)
    return hydra.utils.get_class(cfg["_target_"])(cfg).run()


@hydra.main(config_path="../cfg", config_name=None, version_base="1.3")
def _main(cfg: DictConfig) -> None:
    from env.errors import EnvError
    from model.types import NonFiniteError, ShapeError, StateDictError

    try:
        execute(cfg, HydraConfig.get().overrides.task)
    except (UsageError, EnvError, NonFiniteError, ShapeError, StateDictError) as error:
        # A message for a person; whoever wants the traceback sets HYDRA_FULL_ERROR=1.
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; resume=<run directory> goes on from the last checkpoint\n")
        sys.exit(130)


def _composed(argv: list[str], base: Path) -> DictConfig | None:
    """The configuration that a command line names, without its overrides; None where it names none. Raises what Hydra raises.

    ``base``: the folder of configurations that it may build upon.
    """
    args = get_args_parser().parse_args(argv)
    if not args.config_name:
        return None
    GlobalHydra.instance().clear()
    folder = str(Path(args.config_dir).resolve()) if args.config_dir else str(base)
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            return compose(args.config_name, overrides=[f"hydra.searchpath=[file://{base}]"])
    finally:
        GlobalHydra.instance().clear()


def check_readable(argv: list[str], base: Path = CFG) -> None:
    """Raise ``UsageError`` where Hydra's reader of files would stumble and show a traceback; what it says itself is left to it."""
    try:
        _composed(argv, base)
    except CompactHydraException:
        return
    except Exception as error:
        raise UsageError(
            f"{' '.join(argv)}: the file, or one that its defaults name, cannot be read: {error}"
        ) from error


def explain_unknown_overrides(argv: list[str], base: Path = CFG) -> None:
    """After Hydra refused the command line: name, for every override of a key that does not exist, the nearest one that does."""
    keys = [o.split("=", 1)[0] for o in get_args_parser().parse_args(argv).overrides if "=" in o and o[0] not in "+~"]
    try:
        cfg = _composed(argv, base) if keys else None
    except Exception:  # noqa: BLE001  the configuration itself is broken: Hydra has already said how
        return
    known = [] if cfg is None else all_keys(cfg)
    for key in keys if known else ():
        if key not in known and "/" not in key and "@" not in key and not key.startswith("hydra."):
            sys.stderr.write(f"\nerror: {unknown_key(key, known)}\n")


def main() -> None:
    """Entry point of the command line (also of ``script/train.py`` and, through it, of the console script ``d2ppo``)."""
    argv = sys.argv[1:]
    if not argv or (argv[0] in {"-h", "--help"} and len(argv) == 1):
        leaves = sorted(
            p for p in (ROOT / "cfg").glob("*/*/*/*.yaml") if "base" not in p.relative_to(ROOT / "cfg").parts
        )
        listing = "\n".join(f"  --config-dir={p.parent.relative_to(ROOT)} --config-name={p.stem}" for p in leaves)
        sys.stdout.write(f"{__doc__}\nConfigurations:\n{listing}\n")
        sys.exit(0 if argv else 2)
    try:
        sys.argv[1:] = compat.prepare(argv)
        check_readable(argv)
        _main()
    except UsageError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code not in (0, None, 2, 130):
            explain_unknown_overrides(argv)
        raise


if __name__ == "__main__":
    main()
