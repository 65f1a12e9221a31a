#!/usr/bin/env bash
# Installs the packages of one or more purposes, only what is missing. Debian 12 and Ubuntu 24.04.
#
#   scripts/install_packages.sh build|demo|test|check|package ...
#
# build: compiler and libraries; demo: what a demo needs besides; test: the tests; check: format,
# tidy and fuzzing; package: the release archive. The tests' `prometheus` is also started as a
# service on port 9090 where systemd runs: `systemctl disable --now prometheus` frees the port.
set -euo pipefail

packages_of() { # purpose
  case $1 in
    build)
      echo cmake ninja-build g++ pkg-config \
        libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev \
        libabsl-dev libc-ares-dev libre2-dev libssl-dev zlib1g-dev \
        libspdlog-dev prometheus-cpp-dev nlohmann-json3-dev libpcre2-dev \
        libcurl4-openssl-dev
      ;;
    demo) echo python3 ;;
    test)
      echo git ccache openssl python3 python3-venv libgtest-dev libgmock-dev libboost-context-dev \
        prometheus
      ;;
    check) echo clang clang-tidy clang-format-14 libclang-rt-dev ;;
    package) echo patchelf binutils ;;
    *)
      echo "install_packages.sh: unknown purpose '$1'" >&2
      return 2
      ;;
  esac
}

is_installed() { # package
  [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

install() { # package...
  local as_root=()
  if ((EUID != 0)); then as_root=(sudo); fi
  echo "Installing: $*"
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "$@"
}

main() { # purpose...
  local purpose package packages missing=()
  if ! command -v dpkg-query >/dev/null; then
    echo "install_packages.sh: no dpkg here; install what this script lists yourself" >&2
    return 1
  fi
  for purpose in "$@"; do
    packages=$(packages_of "$purpose")
    for package in $packages; do
      is_installed "$package" || missing+=("$package")
    done
  done
  if ((${#missing[@]} > 0)); then install "${missing[@]}"; fi
}

if (($# == 0)); then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
main "$@"
