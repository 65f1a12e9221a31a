#!/usr/bin/env bash
# Hides a passphrase in thousands of tokens and lets the embedded model find it, streamed over gRPC:
# with sparse attention (TidalDecode), then with full attention for comparison. Installs what it
# needs, builds, starts a server on a free port and stops it. Fails where an answer is wrong.
#
#   scripts/demo.sh [--tokens=8000] [--token_budget=256] [--depth=0.5] [--seed=7] [--bin_dir=DIR]
#
# --bin_dir: programs that are built already, as in an unpacked release archive.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tokens=8000
token_budget=256
depth=0.5
seed=7
bin_dir=

for argument in "$@"; do
  case $argument in
    --tokens=*) tokens=${argument#*=} ;;
    --token_budget=*) token_budget=${argument#*=} ;;
    --depth=*) depth=${argument#*=} ;;
    --seed=*) seed=${argument#*=} ;;
    --bin_dir=*) bin_dir=${argument#*=} ;;
    *)
      sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
      exit 2
      ;;
  esac
done

build() {
  scripts/install_packages.sh build demo
  if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
  echo "Building tidal-server and tidal-client ..."
  # A folder of its own: without the tests, and without touching the settings of build/release.
  cmake -S . -B build/demo -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF >/dev/null
  cmake --build build/demo --parallel "$(nproc)" --target tidal-server tidal-client -- --quiet
  bin_dir=build/demo/bin
}

work=$(mktemp -d)
num_wrong=0
server_pid=
clean_up() {
  if [[ -n $server_pid ]]; then
    kill "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

fail() {
  echo "demo.sh: $1" >&2
  if [[ -s $work/server.log ]]; then tail -n 20 "$work/server.log" >&2; fi
  exit 1
}

# Starts the server on ports that the kernel picks; sets server_pid and target.
start_server() {
  "$bin_dir/tidal-server" --model_path=models/needle --listen_address=127.0.0.1:0 \
    --metrics_address=127.0.0.1:0 --port_file="$work/ports" --device=cpu --selection_layers=2,5 \
    --max_model_len=$((tokens + 256)) >"$work/server.log" 2>&1 &
  server_pid=$!
  local deadline=$((SECONDS + 120))
  until [[ -s $work/ports ]] && target=127.0.0.1:$(awk '$1 == "listen" {print $2}' "$work/ports") &&
    "$bin_dir/tidal-client" health --target="$target" >/dev/null 2>&1; do
    kill -0 "$server_pid" 2>/dev/null || fail "the server ended before it was ready"
    ((SECONDS < deadline)) || fail "the server was not ready within 120 s"
    sleep 0.1
  done
}

# Makes $work/prompt and $work/answer.
make_prompt() {
  python3 models/needle/grammar.py --tokens "$tokens" --depth "$depth" --seed "$seed" --json \
    >"$work/needle.json"
  python3 - "$work" <<'PYTHON'
import json, pathlib, sys
work = pathlib.Path(sys.argv[1])
needle = json.loads((work / "needle.json").read_text())
(work / "prompt").write_text(needle["prompt"])
(work / "answer").write_text(needle["answer"])
PYTHON
}

# Streams the answer with the attention flags given, and compares it.
ask() { # title flags...
  printf '\n--- %s\n' "$1"
  printf 'answer, as it streams: '
  "$bin_dir/tidal-client" generate --target="$target" --prompt_file="$work/prompt" --temperature=0 \
    --max_new_tokens=64 "${@:2}" 2>"$work/summary" | tee "$work/output" ||
    { cat "$work/summary" >&2; fail "the call failed"; }
  printf '\n'
  sed 's/^/  /' "$work/summary"
  if [[ $(strip <"$work/output") == "$(strip <"$work/answer")" ]]; then
    echo "  the answer is right"
  else
    echo "  the answer is WRONG"
    num_wrong=$((num_wrong + 1))
  fi
}

# Text without white space around it.
strip() { tr '\n' ' ' | sed 's/^ *//; s/ *$//'; }

if [[ -z $bin_dir ]]; then build; fi
make_prompt
start_server
printf '\nHaystack: about %d tokens, %d bytes of text; the passphrase lies at %s of it.\n' \
  "$tokens" "$(wc -c <"$work/prompt")" "$depth"
printf 'The prompt ends: ...%s\n' "$(tail -c 120 "$work/prompt" | strip)"
printf 'Expected answer: %s\n' "$(strip <"$work/answer")"
ask "TidalDecode, token budget $token_budget" --attention=tidal --token_budget="$token_budget"
ask "full attention" --attention=full
if ((num_wrong > 0)); then fail "$num_wrong of 2 answers are wrong"; fi
