#!/usr/bin/env bash
# Builds the fuzz targets with Clang and runs each for so many seconds (10 by default), from the seeds
# in tests/fuzz/corpus/ and what earlier runs found. Fails at the first crash, leak, time-out or
# use of more than 2 GiB; the input is then in build/fuzz/findings/.
#
#   scripts/run_fuzz.sh [SECONDS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-10}
targets=(fuzz_safetensors_header fuzz_model_config fuzz_tokenizer_json fuzz_request_validation)

cmake --preset fuzz
cmake --build --preset fuzz --target fuzz_targets --parallel "$(nproc)"

fuzz() { # target
  local target=$1
  local seeds=tests/fuzz/corpus/$target log=build/fuzz/$target.log
  if [[ -z $(ls -A "$seeds") ]]; then
    echo "run_fuzz.sh: no seeds in $seeds" >&2
    return 1
  fi
  mkdir -p "build/fuzz/corpus/$target" build/fuzz/findings
  if ! "build/fuzz/bin/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 "-artifact_prefix=build/fuzz/findings/$target-" \
    "build/fuzz/corpus/$target" "$seeds" >"$log" 2>&1; then
    tail -n 100 "$log" >&2
    echo "run_fuzz.sh: $target failed; its input is in build/fuzz/findings/" >&2
    return 1
  fi
  echo "$target: $(awk '/number_of_executed_units/ {print $2}' "$log") runs in $seconds s"
}

# One target a core; a failure fails the script, after the others have ended.
export seconds
export -f fuzz
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I '{}' bash -c 'set -euo pipefail; fuzz "{}"'
