# Where data and logs go, and whose Weights & Biases account is used. Optional: every command has these defaults.
#
#   source script/set_path.sh          keeps what is set already, else: ./data, ./log of this repository, no account
#   source script/set_path.sh --ask    asks for each
#   source script/set_path.sh --help
#
# Changes the current shell only. To keep them, put the printed lines into your own shell's start-up file.

d2ppo_set_path() {
  local root answer name
  root=$(cd "$(dirname "${BASH_SOURCE[0]:-${(%):-%x}}")/.." && pwd) || return 1
  case "${1:-}" in
    "" | --ask) ;;
    -h | --help)
      printf '%s\n' \
        'source script/set_path.sh [--ask]' \
        '  DPPO_DATA_DIR      demonstrations and normalisation   (default: data/ of this repository)' \
        '  DPPO_LOG_DIR       runs and checkpoints               (default: log/ of this repository)' \
        '  DPPO_WANDB_ENTITY  Weights & Biases user or team      (default: none)' \
        'Values that are set already are kept; --ask asks for each. Changes the current shell only.'
      return 0
      ;;
    *)
      printf 'set_path.sh: unknown argument %s (see --help)\n' "$1" >&2
      return 2
      ;;
  esac
  export DPPO_DATA_DIR="${DPPO_DATA_DIR:-$root/data}" DPPO_LOG_DIR="${DPPO_LOG_DIR:-$root/log}"
  if [ "${1:-}" = --ask ]; then
    for name in DPPO_DATA_DIR DPPO_LOG_DIR DPPO_WANDB_ENTITY; do
      printf '%s [%s]: ' "$name" "$(printenv "$name")" >&2
      read -r answer || break
      if [ -n "$answer" ]; then export "$name=$answer"; fi
    done
  fi
  if [ -n "${DPPO_WANDB_ENTITY:-}" ]; then export DPPO_WANDB_ENTITY; fi
  printf 'export DPPO_DATA_DIR=%q DPPO_LOG_DIR=%q%s\n' "$DPPO_DATA_DIR" "$DPPO_LOG_DIR" \
    "${DPPO_WANDB_ENTITY:+ DPPO_WANDB_ENTITY=$(printf '%q' "$DPPO_WANDB_ENTITY")}"
}

d2ppo_set_path "$@"
