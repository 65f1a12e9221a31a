#!/usr/bin/env bash
# Runs clang-tidy, with the checks of .clang-tidy, on the sources of the engine and the programs.
#
#   scripts/check_tidy.sh [BUILD_DIRECTORY] [FILE...]
#
# BUILD_DIRECTORY (build/release by default) holds compile_commands.json, and the code generated from
# the .proto files. Without FILEs, all sources outside tests/ are checked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build_directory=${1:-build/release}
shift $(($# > 0 ? 1 : 0))
if [[ ! -f $build_directory/compile_commands.json ]]; then
  echo "check_tidy.sh: no $build_directory/compile_commands.json; configure that build first" >&2
  exit 1
fi
files=("$@")
if ((${#files[@]} == 0)); then
  mapfile -t files < <(git ls-files --cached --others --exclude-standard \
    'engine/**.cc' 'server/**.cc' 'client/**.cc' 'tools/**.cc')
fi
printf '%s\0' "${files[@]}" |
  xargs -0 -n 4 -P "$(nproc)" clang-tidy --quiet -p "$build_directory" \
    --extra-arg=-Wno-unknown-warning-option 2> >(grep -v 'warnings generated\.$' >&2)
echo "check_tidy.sh: ${#files[@]} files pass"
