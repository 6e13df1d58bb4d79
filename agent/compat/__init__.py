"""Published configurations (DPPO's and D2PPO's YAML, as it is) through this project's ``script/run.py``.

The rest of the code does not know of them: ``script/run.py`` calls ``prepare`` before Hydra reads the file and ``adapt``
before the configuration is validated. ``targets`` names classes, ``keys`` names keys, ``arithmetic`` computes ``${eval:...}``,
``translate`` puts it together.
"""

from agent.compat.command_line import prepare
from agent.compat.targets import is_published
from agent.compat.translate import Translation, adapt, translate

__all__ = ["Translation", "adapt", "is_published", "prepare", "translate"]
