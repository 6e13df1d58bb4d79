#!/usr/bin/env bash
# The main job, from nothing: set-up, demonstrations, pre-training, PPO fine-tuning, evaluation (Robomimic Lift, or task=can|square|transport).
#
#   bash script/quickstart.sh [task=lift] [seed=0] [out=<folder>] [key=value ...]      (--help: script/quickstart.py's own)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
arguments=("$@")
set -- # `source` would hand our arguments on
# shellcheck source=script/setup.sh
source "$here/setup.sh"
cd "$here/.."
exec "$D2PPO_PYTHON" script/quickstart.py ${arguments[@]+"${arguments[@]}"}
