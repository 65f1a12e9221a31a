// The conformance suite of the seam on the CPU backend, with one thread and with several.

#include "engine/cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "tests/engine/backend/step_driver.h"

namespace tidal::testing {
namespace {

BackendUnderTest CpuUnderTest(int num_threads) {
  return {
      .name = "Cpu" + std::to_string(num_threads) + "Threads",
      .create =
          [num_threads](const ModelShape& shape, const StepLimits& limits) {
            return CreateCpuBackend(shape, limits, {.num_threads = num_threads});
          },
      .float32 = true,
      .bitwise_invariant = true,
      .head_dims = {16, 48, 64, 80, 128},
  };
}

INSTANTIATE_TEST_SUITE_P(Cpu, BackendConformance,
                         ::testing::Values(CpuUnderTest(1), CpuUnderTest(3)),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace tidal::testing
