#include "cuda/matmul.h"

#include <cublasLt.h>

#include <array>
#include <map>
#include <tuple>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "cuda/device.h"
#include "cuda/status.h"
#include "engine/backend/status_macros.h"

namespace tidal::cuda {
namespace {

// What cuBLAS's documentation advises for sm_90.
constexpr int64_t kWorkspaceBytes = 32 << 20;

absl::Status ToStatus(cublasStatus_t status, absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("cuBLASLt: ", cublasLtGetStatusName(status), " from ", what));
}

#define TIDAL_RETURN_IF_CUBLAS_ERROR(call) TIDAL_RETURN_IF_ERROR(ToStatus((call), #call))

template <typename Handle, cublasStatus_t (*destroy)(Handle)>
struct Destroy {
  void operator()(Handle handle) const { destroy(handle); }
};
template <typename Handle, cublasStatus_t (*destroy)(Handle)>
using Owner = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<Handle, destroy>>;
using LtHandle = Owner<cublasLtHandle_t, cublasLtDestroy>;
using Description = Owner<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owner<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owner<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

absl::StatusOr<Layout> MakeLayout(cudaDataType_t type, int32_t rows, int32_t columns) {
  cublasLtMatrixLayout_t layout = nullptr;
  TIDAL_RETURN_IF_CUBLAS_ERROR(cublasLtMatrixLayoutCreate(
      &layout, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), rows));
  return Layout(layout);
}

class CublasMatmul final : public Matmul {
 public:
  explicit CublasMatmul(DType compute_type)
      : type_(compute_type == DType::kFloat16 ? CUDA_R_16F : CUDA_R_16BF) {}

  absl::Status Init();
  absl::Status Run(const Product& product, cudaStream_t stream) override;
  int64_t workspace_bytes() const override { return kWorkspaceBytes; }

 private:
  // cuBLASLt's matrices are column-major: its A is W (transposed), its B is x, its D is y.
  struct Plan {
    Layout weight;
    Layout x;
    Layout y;
    cublasLtMatmulAlgo_t algorithm = {};
  };
  using Key = std::tuple<int32_t, int32_t, int32_t, Product::Store>;

  absl::StatusOr<Plan> MakePlan(const Product& product) const;

  const cudaDataType_t type_;
  LtHandle handle_;
  Description description_;
  Preference preference_;
  DeviceArena workspace_;
  void* workspace_bytes_ = nullptr;
  std::map<Key, Plan> plans_;  // of the shapes seen
};

absl::Status CublasMatmul::Init() {
  cublasLtHandle_t handle = nullptr;
  TIDAL_RETURN_IF_CUBLAS_ERROR(cublasLtCreate(&handle));
  handle_.reset(handle);
  cublasLtMatmulDesc_t description = nullptr;
  TIDAL_RETURN_IF_CUBLAS_ERROR(
      cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  description_.reset(description);
  const cublasOperation_t transpose = CUBLAS_OP_T;
  TIDAL_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulDescSetAttribute(
      description, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)));
  cublasLtMatmulPreference_t preference = nullptr;
  TIDAL_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulPreferenceCreate(&preference));
  preference_.reset(preference);
  const uint64_t workspace_bytes = kWorkspaceBytes;
  TIDAL_RETURN_IF_CUBLAS_ERROR(
      cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                           &workspace_bytes, sizeof(workspace_bytes)));
  TIDAL_ASSIGN_OR_RETURN(
      workspace_, DeviceArena::Allocate(kWorkspaceBytes, kWorkspaceBytes, "cuBLAS's workspaces"));
  workspace_bytes_ = workspace_.Take<char>(kWorkspaceBytes);
  return absl::OkStatus();
}

absl::StatusOr<CublasMatmul::Plan> CublasMatmul::MakePlan(const Product& product) const {
  Plan plan;
  const cudaDataType_t y_type = product.store == Product::Store::kRounded ? type_ : CUDA_R_32F;
  TIDAL_ASSIGN_OR_RETURN(plan.weight, MakeLayout(type_, product.inputs, product.outputs));
  TIDAL_ASSIGN_OR_RETURN(plan.x, MakeLayout(type_, product.inputs, product.rows));
  TIDAL_ASSIGN_OR_RETURN(plan.y, MakeLayout(y_type, product.outputs, product.rows));
  cublasLtMatmulHeuristicResult_t result = {};
  int num_results = 0;
  TIDAL_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulAlgoGetHeuristic(
      handle_.get(), description_.get(), plan.weight.get(), plan.x.get(), plan.y.get(),
      plan.y.get(), preference_.get(), 1, &result, &num_results));
  if (num_results == 0) {
    return absl::InternalError(absl::StrCat("cuBLASLt has no product of ", product.rows, " x ",
                                            product.inputs, " by ", product.outputs));
  }
  plan.algorithm = result.algo;
  return plan;
}

absl::Status CublasMatmul::Run(const Product& product, cudaStream_t stream) {
  const Key key = {product.rows, product.inputs, product.outputs, product.store};
  auto it = plans_.find(key);
  if (it == plans_.end()) {
    TIDAL_ASSIGN_OR_RETURN(Plan plan, MakePlan(product));
    it = plans_.emplace(key, std::move(plan)).first;
  }
  const Plan& plan = it->second;
  const float one = 1.0f;
  const float beta = product.store == Product::Store::kAccumulate ? 1.0f : 0.0f;
  TIDAL_RETURN_IF_CUBLAS_ERROR(
      cublasLtMatmul(handle_.get(), description_.get(), &one, product.weight, plan.weight.get(),
                     product.x, plan.x.get(), &beta, product.y, plan.y.get(), product.y,
                     plan.y.get(), &plan.algorithm, workspace_bytes_, kWorkspaceBytes, stream));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Matmul>> CreateMatmul(DType compute_type) {
  auto matmul = std::make_unique<CublasMatmul>(compute_type);
  TIDAL_RETURN_IF_ERROR(matmul->Init());
  return matmul;
}

}  // namespace tidal::cuda
