#!/usr/bin/env bash
# Everything that must hold: format, include and tidy checks, all tests under the asan and release
# presets, the concurrency tests under tsan, short fuzz runs. Installs the packages it needs. Ends
# with CTest's summary of the release build.
#
#   scripts/test.sh             TIDAL_FUZZ_SECONDS=10: how long each fuzz target runs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jobs=$(nproc)
started=$SECONDS

banner() { printf '\n=== %s (at %d s)\n' "$1" $((SECONDS - started)); }

build() { # preset [target...]
  cmake --preset "$1" >/dev/null
  cmake --build --preset "$1" --parallel "$jobs" ${2:+--target "${@:2}"} -- --quiet
}

banner "packages"
scripts/install_packages.sh build test check
scripts/make_venv.sh
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
fi

banner "format and includes"
scripts/check_format.sh
scripts/check_includes.py

banner "tidy"
build release tidal_proto tidal_health_proto
scripts/check_tidy.sh build/release

banner "asan: build and all tests"
build asan
ctest --preset asan --parallel "$jobs" --progress --no-tests=error

banner "tsan: build and concurrency tests"
build tsan concurrency_tests
ctest --preset tsan --parallel "$jobs" --progress --no-tests=error

banner "fuzz"
scripts/run_fuzz.sh "${TIDAL_FUZZ_SECONDS:-10}"

banner "release: build and all tests"
build release
ctest --preset release --parallel "$jobs" --no-tests=error
