#!/usr/bin/env bash
# All checks and tests, from nothing: set-up, ruff, pytest on two processes.
#
#   bash script/test.sh [pytest arguments]      e.g. bash script/test.sh tests/model -k dispersive -n 0
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=script/setup.sh
source "$here/setup.sh" dev
cd "$here/.."
# One thread each: two test processes that spawn a thread per core fight over the cores, and torch's barriers then cost more than the work.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
unset DPPO_DATA_DIR DPPO_LOG_DIR DPPO_WANDB_ENTITY # the tests decide where they write
# Both are always run: one answer to "what is broken?", with pytest's closing line as the last one printed.
status=0
"$D2PPO_PYTHON" -m ruff check --quiet --output-format concise . || status=$?
"$D2PPO_PYTHON" -m pytest -n "${D2PPO_TEST_PROCESSES:-2}" -q "$@" || status=$?
exit "$status"
