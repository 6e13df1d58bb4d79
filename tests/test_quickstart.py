"""The quickstart's recipes name configurations and demonstrations that exist, and its commands are the ones a user would type."""

from __future__ import annotations

import pytest

from env.registry import EXPERTS
from script import collect_demos, quickstart


@pytest.mark.parametrize("task", quickstart.RECIPES)
def test_every_recipe_names_what_exists(task):
    recipe, name = quickstart.RECIPES[task], task.removesuffix("-img")
    assert name in EXPERTS
    arguments = collect_demos.parse([f"--task={name}", f"--episodes={recipe.demonstrations}", *recipe.collect])
    assert arguments.images == task.endswith("-img")
    for stage in ("pretrain", "finetune"):
        command = quickstart.run(task, stage, quickstart.Path("log/none"), ["seed=3"])
        folder, leaf = (part.split("=")[1] for part in command[1:3])
        assert (quickstart.ROOT / folder / f"{leaf}.yaml").is_file()
        assert command[-1] == "seed=3" and "resume=true" not in command


def test_an_unknown_task_or_seed_is_refused_by_name(capsys):
    assert quickstart.main(["task=lft"]) == 2 and "lft" in capsys.readouterr().err
    assert quickstart.main(["seed=one"]) == 2 and "one" in capsys.readouterr().err
