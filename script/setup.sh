# Everything a fresh machine needs, once; sourced by quickstart.sh, test.sh and check.sh:
#
#   source script/setup.sh [extra ...]      leaves the interpreter's path in $D2PPO_PYTHON
#
# Creates .venv in the repository's root (D2PPO_VENV: another place) with Python 3.10, 3.11 or 3.12 (D2PPO_PYTHON_BIN: a certain one),
# installs what pyproject.toml asks for at the versions of constraints.txt with plain pip, and remembers that in a stamp file.
# Done already, it takes a few milliseconds and touches no network. bash script/setup.sh works too.

d2ppo_say() { printf '[setup] %s\n' "$*" >&2; }

# Is this a Python we support, that really runs (a pyenv shim may exist and not), with venv and pip inside?
d2ppo_usable_python() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

d2ppo_find_python() {
  local candidate
  for candidate in ${D2PPO_PYTHON_BIN:+"$D2PPO_PYTHON_BIN"} python3.11 python3.12 python3.10 python3 python \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[012]*/bin/python /usr/bin/python3.1[012] /usr/local/bin/python3.1[012]; do
    if d2ppo_usable_python "$candidate"; then
      command -v "$candidate"
      return 0
    fi
    if [ "$candidate" = "${D2PPO_PYTHON_BIN:-}" ]; then break; fi # asked for by name: nothing else will do
  done
  d2ppo_say "no suitable Python found: version 3.10, 3.11 or 3.12 with venv and pip is needed${D2PPO_PYTHON_BIN:+ ($D2PPO_PYTHON_BIN is not one)}."
  d2ppo_say "Debian or Ubuntu: apt-get install python3 python3-venv. Elsewhere: pyenv, conda or your package manager;"
  d2ppo_say "then name it: D2PPO_PYTHON_BIN=/path/to/python3.11 bash script/quickstart.sh"
  return 1
}

# d2ppo_library <python> <packages> <without it> <group> ...: a system library that is good to have. Nothing here may fail the set-up.
# A group is libraries with commas between; one whole group is enough. Debian family, root: it is installed.
d2ppo_library() {
  local python=$1 packages=$2 without=$3
  shift 3
  [ "$(uname -s)" = Linux ] || return 0
  "$python" - "$@" <<'PY' && return 0
import ctypes, sys
for group in sys.argv[1:]:
    try:
        [ctypes.CDLL(name) for name in group.split(",")]
    except OSError:
        continue
    sys.exit(0)
sys.exit(1)
PY
  d2ppo_apt "$packages" || d2ppo_say "$without. On Debian or Ubuntu: sudo apt-get install $packages"
}

# d2ppo_apt <packages>: installs them where that is possible without asking (Debian family, root)
d2ppo_apt() {
  local packages=$1
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    d2ppo_say "trying apt-get install $packages"
    # shellcheck disable=SC2086  # a list of words
    if { timeout 120 apt-get install -qq -y --no-install-recommends $packages ||
      { timeout 120 apt-get update -qq && timeout 180 apt-get install -qq -y --no-install-recommends $packages; }; } \
      </dev/null >/dev/null 2>&1; then
      return 0
    fi
  fi
  return 1
}

# OpenGL draws videos faster on a GPU, and is what images are compared with; without it this project's own renderer draws everything.
d2ppo_libraries() {
  local python=$1 extra
  shift
  d2ppo_library "$python" "libegl1 libgles2 libgl1-mesa-dri libosmesa6" "no OpenGL library: images and videos are drawn without" \
    libEGL.so.1,libGLESv2.so.2 libOSMesa.so.8 libOSMesa.so.6
  for extra; do
    case $extra in
    dev)
      command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null 2>&1 || d2ppo_apt chromium-headless-shell ||
        d2ppo_say "no Chromium: the report's page will not be looked at"
      ;;
    esac
    case $extra in
    dev | real) d2ppo_library "$python" libusb-1.0-0 "no libusb: RealSense cameras cannot be used" libusb-1.0.so.0 ;;
    esac
  done
}

# d2ppo_pip <python> <log> <pip install's arguments>: all it says goes to the log; errors and downloads of 100 MB and more are shown.
d2ppo_pip() {
  local python=$1 log=$2
  shift 2
  "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" 2>&1 | tee -a "$log" |
    grep --line-buffered -E '^ *ERROR|^ *error:|Downloading .*\(([0-9]{3,}[0-9.]* MB|[0-9.]+ GB)\)' >&2
  return "${PIPESTATUS[0]}"
}

# d2ppo_install <python> <log> <root> [extra ...]: the requirements, and this project itself, editable.
d2ppo_install() {
  local python=$1 log=$2 root=$3 extras
  shift 3
  extras=$(IFS=, && printf '%s' "$*")
  : >"$log"
  if "$python" "$root/script/requirements.py" needs-light; then
    d2ppo_say "no compiler, headers or desktop libraries here: robosuite goes in without the requirements that want them"
    "$python" "$root/script/requirements.py" light "$@" >"$log.requirements" || return 1
    d2ppo_pip "$python" "$log" -c "$root/constraints.txt" -r "$log.requirements" setuptools || return 1
    d2ppo_pip "$python" "$log" -c "$root/constraints.txt" --no-deps robosuite || return 1
    d2ppo_pip "$python" "$log" --no-deps --no-build-isolation -e "$root"
  else
    d2ppo_pip "$python" "$log" -c "$root/constraints.txt" -e "$root${extras:+[$extras]}"
  fi
}

# d2ppo_setup [extra ...]: sets D2PPO_PYTHON
d2ppo_setup() {
  local root venv python stamp key log started base unmet
  started=$(date +%s)
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || return 1
  venv=${D2PPO_VENV:-$root/.venv}
  python=$venv/bin/python
  stamp=$venv/.d2ppo-setup${1:+-$(IFS=-; printf '%s' "$*")}
  key="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum) $root"
  if [ -x "$python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
    D2PPO_PYTHON=$python
    return 0
  fi
  if ! d2ppo_usable_python "$python"; then
    base=$(d2ppo_find_python) || return 1
    d2ppo_say "creating $venv with $("$base" --version 2>&1)"
    "$base" -m venv --clear "$venv" || { d2ppo_say "could not create $venv (D2PPO_VENV names another place)"; return 1; }
  fi
  unmet=$("$python" "$root/script/requirements.py" missing "$@") || return 1
  if [ -n "$unmet" ]; then
    log=$venv/d2ppo-pip.log
    d2ppo_say "installing what constraints.txt pins (a few minutes, once; to watch: tail -f '$log')"
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 && ! "$python" -c 'import torch' 2>/dev/null; then
      d2ppo_say "no NVIDIA GPU here: should pip fetch gigabytes of CUDA for torch, stop it and set PIP_EXTRA_INDEX_URL to PyTorch's CPU index"
    fi
    if ! d2ppo_install "$python" "$log" "$root" "$@"; then
      d2ppo_say "pip could not install the requirements; its full log: $log"
      d2ppo_say "no network, or behind a mirror? pip's own settings (PIP_INDEX_URL, PIP_PROXY, ...) are honoured. Running this again goes on."
      return 1
    fi
    if ! "$python" -c 'import torch, hydra, mujoco, numba, robosuite' >"$log.import" 2>&1; then
      tail -n 5 "$log.import" >&2
      d2ppo_say "installed, but the above does not import; start over with: rm -rf '$venv'"
      return 1
    fi
  fi
  d2ppo_libraries "$python" "$@"
  printf '%s' "$key" >"$stamp"
  D2PPO_PYTHON=$python
  d2ppo_say "ready in $(($(date +%s) - started)) s: $python"
}

d2ppo_setup "$@"
