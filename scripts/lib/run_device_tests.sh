#!/usr/bin/env bash
# Runs the bundle's tests on this machine's GPU; arguments go to each test program (--gtest_filter=...).
# TIDAL_SANITIZER=memcheck or racecheck runs them under compute-sanitizer's tool of that name.
set -uo pipefail
bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export TIDAL_SOURCE_DIR=$bundle
export LD_LIBRARY_PATH=/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
checker=()
if [[ -n ${TIDAL_SANITIZER:-} ]]; then
  checker=(compute-sanitizer --tool "$TIDAL_SANITIZER" --error-exitcode 99)
fi
failed=0
for test in "$bundle"/bin/*_test; do
  "${checker[@]}" "$test" --gtest_brief=1 "$@" || failed=1
done
exit $failed
