#!/usr/bin/env bash
# The main job, from nothing: set-up, demonstrations, pre-training with the dispersive loss, PPO fine-tuning, evaluation (Robomimic Lift).
#
#   bash script/quickstart.sh [seed=0] [out=<folder>] [key=value ...]      (--help: script/quickstart.py's own)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
arguments=("$@")
set -- # `source` would hand our arguments on
# shellcheck source=script/setup.sh
source "$here/setup.sh"
cd "$here/.."
exec "$D2PPO_PYTHON" script/quickstart.py ${arguments[@]+"${arguments[@]}"}
