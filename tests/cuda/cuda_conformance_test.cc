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

// On the emulation, which is slow and slower yet under a sanitizer, long lists are thinned out.
#if defined(TIDAL_EMULATED) && defined(__SANITIZE_ADDRESS__)
constexpr int kCaseStride = 37;
#elif defined(TIDAL_EMULATED)
constexpr int kCaseStride = 11;
#else
constexpr int kCaseStride = 1;
#endif

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
      .intermediate_multiple = 8,
      .case_stride = kCaseStride,
  };
}

std::vector<BackendUnderTest> BackendsUnderTest() {
  if (!HasDevice()) return {};
  const BackendUnderTest bfloat16 = CudaUnderTest("BFloat16", DType::kBFloat16);
  const BackendUnderTest float16 = CudaUnderTest("Float16", DType::kFloat16);
#if defined(TIDAL_EMULATED_SM80)
  return {float16};
#elif defined(TIDAL_EMULATED)
  return {bfloat16};
#else
  return {bfloat16, float16};
#endif
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(BackendConformance);
INSTANTIATE_TEST_SUITE_P(Cuda, BackendConformance, ::testing::ValuesIn(BackendsUnderTest()),
                         [](const auto& test) { return test.param.name; });

TEST(CudaConformance, HasADevice) {
  if (!HasDevice()) GTEST_SKIP() << "no CUDA device: the conformance suite does not run";
  EXPECT_FALSE(BackendsUnderTest().empty());
}

}  // namespace
}  // namespace tidal::testing
