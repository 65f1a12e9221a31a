#!/usr/bin/env bash
# Makes dist/tidal-<version>-linux-x86_64.tar.gz: programs, the embedded model, and every shared
# library they need but glibc's, CUDA's and the driver's. It runs unpacked anywhere, on a system whose
# glibc is not older than this one's: build it on Debian 12 for Debian 12 and Ubuntu 24.04.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# glibc must be the system's own, and so must what belongs to the GPU's driver.
is_of_the_system() {
  case $1 in
    linux-vdso.so.* | ld-linux*.so.* | libc.so.* | libm.so.* | libpthread.so.* | libdl.so.* | \
      librt.so.* | libresolv.so.* | libutil.so.* | libanl.so.* | libnsl.so.* | libmvec.so.*) ;;
    libcuda.so* | libcudart.so* | libcublas*.so* | libnccl.so* | libnvidia-*.so* | libnvrtc*.so*) ;;
    *) return 1 ;;
  esac
}

# Copies the libraries that the files given need, through all of theirs. ldd lists the closure.
copy_libraries() { # folder file...
  local folder=$1 name path
  while read -r name path; do
    if ! is_of_the_system "$name" && [[ ! -e $folder/$name ]]; then
      if [[ $path == not ]]; then
        echo "package.sh: $name is not found" >&2
        exit 1
      fi
      cp -L "$path" "$folder/$name"
      chmod 644 "$folder/$name"
    fi
  done < <(ldd "${@:2}" | awk '$2 == "=>" {print $1, $3}' | sort -u)
}

# Fails where a file of the archive, moved elsewhere, would load a library of the system.
verify() { # folder
  local strays
  strays=$(env -u LD_LIBRARY_PATH ldd "$1"/bin/* "$1"/lib/*.so* | awk '$2 == "=>" {print $1, $3}' |
    sort -u | while read -r name path; do
    if [[ $path != "$1"/* ]] && ! is_of_the_system "$name"; then echo "$name => $path"; fi
  done)
  if [[ -n $strays ]]; then
    printf 'package.sh: not bundled:\n%s\n' "$strays" >&2
    exit 1
  fi
  env -u LD_LIBRARY_PATH "$1/bin/tidal-client" --help >/dev/null
  env -u LD_LIBRARY_PATH "$1/bin/tidal-server" --version >/dev/null
}

scripts/install_packages.sh build package
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
cmake -S . -B build/package -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF >/dev/null
cmake --build build/package --parallel "$(nproc)" -- --quiet
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:STATIC=//p' build/package/CMakeCache.txt)
name=tidal-$version-linux-x86_64

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/$name
cmake --install build/package --prefix "$root" --strip >/dev/null
mkdir -p "$root/lib"
copy_libraries "$root/lib" "$root"/bin/*
# $ORIGIN is the loader's, not the shell's.
# shellcheck disable=SC2016
for program in "$root"/bin/*; do patchelf --set-rpath '$ORIGIN/../lib' "$program"; done
# shellcheck disable=SC2016
for library in "$root"/lib/*.so*; do patchelf --set-rpath '$ORIGIN' "$library"; done
for file in README.md LICENSE; do
  if [[ -e $file ]]; then cp "$file" "$root/"; fi
done

mkdir "$work/moved"
cp -a "$root" "$work/moved/"
verify "$work/moved/$name"

mkdir -p dist
tar --sort=name --owner=0 --group=0 --numeric-owner -C "$work" -czf "dist/$name.tar.gz" "$name"
newest_glibc=$(objdump -T "$root"/bin/* "$root"/lib/*.so* | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
echo "dist/$name.tar.gz: $(du -h "dist/$name.tar.gz" | cut -f1), needs glibc ${newest_glibc#GLIBC_}"
