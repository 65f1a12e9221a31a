// The conformance suite of the seam on the CUDA backend, in both of its types: on a device, and,
// built with the emulation, without one.

#include <cuda_runtime_api.h>

#include "cuda/cuda_backend.h"
#include "gtest/gtest.h"
#include "tests/engine/backend/step_driver.h"

namespace tidal::testing {
namespace {

bool HasDevice() {
  int num_devices = 0;
  return cudaGetDeviceCount(&num_devices) == cudaSuccess && num_devices > 0;
}

BackendUnderTest CudaUnderTest(const std::string& name, DType compute_type) {
  return {
      .name = name,
      .create =
          [compute_type](const ModelShape& shape, const StepLimits& limits) {
            return CreateCudaBackendOnDevice(
                shape, limits, {.memory_fraction = 0.5, .compute_type = compute_type});
          },
      .float32 = false,
      .bitwise_invariant = false,
      .head_dims = {64, 128},
  };
}

std::vector<BackendUnderTest> BackendsUnderTest() {
  if (!HasDevice()) return {};
  return {CudaUnderTest("BFloat16", DType::kBFloat16), CudaUnderTest("Float16", DType::kFloat16)};
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(BackendConformance);
INSTANTIATE_TEST_SUITE_P(Cuda, BackendConformance, ::testing::ValuesIn(BackendsUnderTest()),
                         [](const auto& test) { return test.param.name; });

TEST(CudaConformance, HasADevice) {
  if (!HasDevice()) GTEST_SKIP() << "no CUDA device: the conformance suite does not run";
  EXPECT_EQ(BackendsUnderTest().size(), 2u);
}

}  // namespace
}  // namespace tidal::testing
