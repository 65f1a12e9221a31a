#include "cuda/status.h"

#include "absl/strings/str_cat.h"

namespace tidal::cuda {

absl::Status ToStatus(cudaError_t error, absl::string_view what) {
  return absl::InternalError(absl::StrCat("CUDA: ", cudaGetErrorName(error), " (",
                                          cudaGetErrorString(error), ") from ", what));
}

}  // namespace tidal::cuda
