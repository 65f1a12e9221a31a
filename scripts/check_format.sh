#!/usr/bin/env bash
# Checks that every C++ file is formatted as .clang-format says; with --fix formats them.
# Always with clang-format 14, which both supported systems have: versions differ in their results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

clang_format=$(command -v clang-format-14) || {
  echo "check_format.sh: clang-format-14 is not installed" >&2
  exit 1
}
mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.cc' '*.h' '*.cu' '*.cuh')
if [[ ${1:-} == --fix ]]; then
  "$clang_format" -i "${files[@]}"
else
  "$clang_format" --dry-run --Werror "${files[@]}"
  echo "check_format.sh: ${#files[@]} files are formatted"
fi
