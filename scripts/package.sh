#!/usr/bin/env bash
# Makes dist/tidal-<version>-linux-x86_64.tar.gz: programs, the embedded model, and every shared
# library they need but glibc's, CUDA's and the driver's. It runs unpacked anywhere, on a system whose
# glibc is not older than this one's: build it on Debian 12 for Debian 12 and Ubuntu 24.04.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/lib/bundle.sh

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
set_relative_paths "$root"
for file in README.md LICENSE; do
  if [[ -e $file ]]; then cp "$file" "$root/"; fi
done

mkdir "$work/moved"
cp -a "$root" "$work/moved/"
moved=$work/moved/$name
verify_bundle "$moved"
env -u LD_LIBRARY_PATH "$moved/bin/tidal-client" --help >/dev/null
env -u LD_LIBRARY_PATH "$moved/bin/tidal-server" --version >/dev/null

mkdir -p dist
tar --sort=name --owner=0 --group=0 --numeric-owner -C "$work" -czf "dist/$name.tar.gz" "$name"
newest_glibc=$(objdump -T "$root"/bin/* "$root"/lib/*.so* | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
echo "dist/$name.tar.gz: $(du -h "dist/$name.tar.gz" | cut -f1), needs glibc ${newest_glibc#GLIBC_}"
