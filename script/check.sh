#!/usr/bin/env bash
# The cheap half of script/test.sh (seconds): the linter over everything; --fix repairs what it can.
#
#   bash script/check.sh [--fix]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
arguments=("$@")
# shellcheck source=script/setup.sh
source "$here/setup.sh" dev
cd "$here/.."
"$D2PPO_PYTHON" -m ruff check ${arguments[@]+"${arguments[@]}"} .
exec "$D2PPO_PYTHON" -m pytest -q -p no:cacheprovider tests/test_imports.py tests/test_style.py
