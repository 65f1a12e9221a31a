#include "engine/cuda_plugin.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

constexpr char kFileName[] = "libtidal_cuda.so";

absl::StatusOr<std::filesystem::path> FindPlugin() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("where this program lies cannot be read: ", error.message()));
  }
  const std::filesystem::path folder = program.parent_path();
  for (const auto& candidate : {folder / kFileName, folder.parent_path() / "lib" / kFileName}) {
    if (std::filesystem::exists(candidate, error)) return candidate;
  }
  return absl::UnavailableError(absl::StrCat("this installation has no CUDA plugin: ", kFileName,
                                             " is neither in ", folder.string(), " nor in ",
                                             (folder.parent_path() / "lib").string()));
}

absl::StatusOr<CreateCudaBackendFunction> OpenPlugin() {
  TIDAL_ASSIGN_OR_RETURN(const std::filesystem::path path, FindPlugin());
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(absl::StrCat("the CUDA plugin cannot be opened: ", dlerror()));
  }
  const auto version =
      reinterpret_cast<CudaPluginVersionFunction>(dlsym(library, kCudaPluginVersionSymbol));
  const auto create =
      reinterpret_cast<CreateCudaBackendFunction>(dlsym(library, kCreateCudaBackendSymbol));
  if (version == nullptr || create == nullptr || version() != kCudaPluginVersion) {
    return absl::UnavailableError(
        absl::StrCat(path.string(), " is the CUDA plugin of another version of this program"));
  }
  return create;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const ModelShape& shape,
                                                           const StepLimits& limits,
                                                           const CudaBackendOptions& options) {
  TIDAL_ASSIGN_OR_RETURN(const CreateCudaBackendFunction create, OpenPlugin());
  std::unique_ptr<Backend> backend;
  absl::Status status;
  create(shape, limits, options, &backend, &status);
  TIDAL_RETURN_IF_ERROR(status);
  return backend;
}

}  // namespace tidal
