#!/usr/bin/env bash
# What the Dockerfile's build stages do: builds, tests, and lays out what the final stages copy.
#
#   scripts/build_for_image.sh --output=DIR [--cuda] [--tests=on|off] [--jobs=N]
#
# DIR/tidal: programs, the CUDA plugin, the embedded model. DIR/packages.txt: the distribution's
# packages with the shared libraries that those need. DIR/cuda: those of the CUDA toolkit.
# --cuda fails where no CUDA plugin was built. --jobs=0 is one for each core.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

output=
tests=on
jobs=0
cuda=no
for argument in "$@"; do
  case $argument in
    --output=*) output=${argument#*=} ;;
    --tests=on | --tests=off) tests=${argument#*=} ;;
    --jobs=*) jobs=${argument#*=} ;;
    --cuda) cuda=yes ;;
    *)
      sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
      exit 2
      ;;
  esac
done
if [[ -z $output ]]; then
  echo "build_for_image.sh: --output is missing" >&2
  exit 2
fi
if ((jobs == 0)); then jobs=$(nproc); fi

# The shared libraries that the programs and plugins need, through all of theirs: a path a line.
libraries_of() { # file...
  ldd "$@" | awk '$2 == "=>" && $3 == "not" {print $1 " is not found" > "/dev/stderr"; exit 1}
    $2 == "=>" {print $3}' | sort -u
}

# Of the distribution: package names without architecture. Of the toolkit: copied. What is ours, and
# what comes with the GPU's driver, is left out.
lay_out_libraries() { # file...
  local paths path real owner
  paths=$(libraries_of "$@")
  mkdir -p "$output/cuda"
  while read -r path; do
    real=$(realpath "$path")
    case $real in
      "$output"/* | */libcuda.so.* | */libnvidia-*) continue ;;
      /usr/local/cuda*)
        cp "$real" "$output/cuda/$(basename "$path")"
        continue
        ;;
    esac
    # By its name: packages may know a library by its path under /lib instead of /usr/lib.
    owner=$(dpkg-query -S "*/$(basename "$real")" | head -n 1)
    echo "${owner%%:*}"
  done <<<"$paths" | sort -u >"$output/packages.txt"
}

export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
cmake --preset release -DBUILD_TESTING="${tests^^}"
cmake --build --preset release --parallel "$jobs" -- --quiet
if [[ $tests == on ]]; then
  ctest --preset release --parallel "$jobs" --no-tests=error
fi

mkdir -p "$output"
cmake --install build/release --prefix "$output/tidal" --strip >/dev/null
cp LICENSE "$output/tidal/"
plugin=$output/tidal/lib/libtidal_cuda.so
if [[ $cuda == yes && ! -e $plugin ]]; then
  echo "build_for_image.sh: no CUDA plugin was built: is nvcc in this image?" >&2
  exit 1
fi
files=("$output"/tidal/bin/*)
if [[ -e $plugin ]]; then files+=("$plugin"); fi
lay_out_libraries "${files[@]}"
echo "Runtime packages: $(tr '\n' ' ' <"$output/packages.txt")"
