#!/usr/bin/env bash
# Installs the packages of one or more purposes, only what is missing. Debian 12 and Ubuntu 24.04.
#
#   scripts/install_packages.sh build|demo|test|package ...
#
# build: compiler and libraries; demo: what a demo needs besides; test: tests, checks and fuzzing;
# package: the release archive.
set -euo pipefail

build_packages=(
  cmake ninja-build g++ pkg-config
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev
  libabsl-dev libc-ares-dev libre2-dev libssl-dev zlib1g-dev
  libspdlog-dev prometheus-cpp-dev nlohmann-json3-dev libpcre2-dev libsentencepiece-dev
  libopenblas-dev
)
demo_packages=(python3)
test_packages=(
  ccache python3 python3-venv
  libgtest-dev libgmock-dev
  clang clang-tidy clang-format-14 libclang-rt-dev
)
package_packages=(patchelf binutils)

is_installed() {
  [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

main() {
  if (($# == 0)); then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
  fi
  if ! command -v dpkg-query >/dev/null; then
    echo "install_packages.sh: no dpkg here; install the packages that this script lists yourself" >&2
    exit 1
  fi
  local purpose package missing=()
  for purpose in "$@"; do
    case $purpose in build | demo | test | package) ;; *)
      echo "install_packages.sh: unknown purpose '$purpose'" >&2
      exit 2
      ;;
    esac
    local -n packages="${purpose}_packages"
    for package in "${packages[@]}"; do
      is_installed "$package" || missing+=("$package")
    done
  done
  if ((${#missing[@]} == 0)); then return; fi

  echo "Installing: ${missing[*]}"
  local as_root=()
  if ((EUID != 0)); then as_root=(sudo); fi
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "${missing[@]}"
}

main "$@"
