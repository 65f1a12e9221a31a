#!/usr/bin/env bash
# Makes a folder (build/device-tests, or the one named) of the tests and programs that want a GPU, with
# every library they need but glibc, CUDA's and the driver's: for a GPU machine that can build nothing.
# There, run its `run-tests`. TIDAL_CUDA_ARCHITECTURES names what to build for (default 90a).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib/bundle.sh
bundle=$(realpath -m "${1:-build/device-tests}")
tests=(cuda_kernels_test cuda_conformance_test cuda_golden_test)
programs=(tidal-bench tidal-eval tidal-server tidal-client)

command -v patchelf >/dev/null || scripts/install_packages.sh build package
cmake -S . -B build/device -G Ninja -DCMAKE_BUILD_TYPE=Release -DTIDAL_CUDA=ON \
  -DTIDAL_CUDA_ARCHITECTURES="${TIDAL_CUDA_ARCHITECTURES:-90a}" >/dev/null
cmake --build build/device --parallel "$(nproc)" --target "${tests[@]}" "${programs[@]}" tidal_cuda \
  -- --quiet

rm -rf "$bundle"
mkdir -p "$bundle"/{bin,lib,tests/golden,models}
for program in "${tests[@]}" "${programs[@]}"; do
  strip -o "$bundle/bin/$program" "build/device/bin/$program"
done
strip -o "$bundle/lib/libtidal_cuda.so" build/device/lib/libtidal_cuda.so
copy_libraries "$bundle/lib" "$bundle"/bin/* "$bundle/lib/libtidal_cuda.so"
set_relative_paths "$bundle"
verify_bundle "$bundle"
cp -r tests/golden/checkpoints "$bundle/tests/golden/"
cp -r models/needle "$bundle/models/"
cp scripts/lib/run_device_tests.sh "$bundle/run-tests"

tar -C "$(dirname "$bundle")" -czf "$bundle.tar.gz" "$(basename "$bundle")"
du -h "$bundle.tar.gz"
