#include "cuda/weights.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "cuda/kernels/weight_layout.h"
#include "cuda/status.h"
#include "engine/backend/status_macros.h"

namespace tidal::cuda {
namespace {

// Carries tensors from the checkpoint's pages to the device: while one piece is copied and
// converted there, the next is read into the other half of the pinned memory.
class Uploader {
 public:
  // No tensor is larger than `max_tensor_bytes`.
  absl::Status Init(int64_t max_tensor_bytes) {
    piece_bytes_ = std::min(kMaxPieceBytes, (max_tensor_bytes + kPieceAlignment - 1) /
                                                kPieceAlignment * kPieceAlignment);
    TIDAL_RETURN_IF_ERROR(stream_.Create());
    TIDAL_ASSIGN_OR_RETURN(
        arena_, DeviceArena::Allocate(kNumPieces * piece_bytes_, kNumPieces * piece_bytes_,
                                      "the buffers that weights pass"));
    for (Piece& piece : pieces_) {
      TIDAL_RETURN_IF_ERROR(piece.host.Allocate(piece_bytes_));
      TIDAL_RETURN_IF_ERROR(piece.is_free.Create());
      piece.device = arena_.Take<char>(piece_bytes_);
    }
    return absl::OkStatus();
  }

  // Nothing where the tensor is absent.
  template <typename Target>
  absl::Status Upload(const TensorView& tensor, const RowMap& map, Target* target) {
    if (!tensor.present()) return absl::OkStatus();
    // A vector's elements are its rows, as far as maps are concerned.
    const int64_t num_rows = tensor.rows == 1 ? tensor.cols : tensor.rows;
    const int64_t num_columns = tensor.rows == 1 ? 1 : tensor.cols;
    const int64_t row_bytes = num_columns * static_cast<int64_t>(SizeOf(tensor.dtype));
    const int64_t most_rows = piece_bytes_ / row_bytes;
    if (most_rows == 0) return absl::InvalidArgumentError("a row of weights exceeds 64 MiB");
    for (int64_t first = 0; first < num_rows; first += most_rows) {
      const int64_t piece_rows = std::min(most_rows, num_rows - first);
      const auto piece_bytes = static_cast<size_t>(piece_rows * row_bytes);
      Piece& piece = pieces_[next_piece_++ % kNumPieces];
      TIDAL_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(piece.is_free.get()));
      std::memcpy(piece.host.data(), static_cast<const char*>(tensor.bytes) + first * row_bytes,
                  piece_bytes);
      TIDAL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(piece.device, piece.host.data(), piece_bytes,
                                                 cudaMemcpyHostToDevice, stream_.get()));
      TIDAL_RETURN_IF_CUDA_ERROR(LaunchConvertRows(
          piece.device, tensor.dtype, static_cast<int32_t>(first), static_cast<int32_t>(piece_rows),
          static_cast<int32_t>(num_columns), map, target, stream_.get()));
      TIDAL_RETURN_IF_CUDA_ERROR(cudaEventRecord(piece.is_free.get(), stream_.get()));
    }
    return absl::OkStatus();
  }

  absl::Status Finish() {
    TIDAL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kMaxPieceBytes = 64 << 20;
  static constexpr int64_t kPieceAlignment = 256;
  static constexpr size_t kNumPieces = 2;

  struct Piece {
    PinnedArray<char> host;
    char* device = nullptr;
    Event is_free;
  };

  int64_t piece_bytes_ = 0;
  Stream stream_;
  DeviceArena arena_;
  std::array<Piece, kNumPieces> pieces_;
  size_t next_piece_ = 0;
};

}  // namespace

template <typename T>
void DeviceWeights<T>::LayOut(DeviceArena* arena) {
  const int64_t hidden_size = shape_.hidden_size;
  const int64_t qkv_size = shape_.query_size() + 2 * int64_t{shape_.kv_size()};
  const int64_t gate_up_size = 2 * int64_t{shape_.intermediate_size};
  const auto bias = [arena](bool present, int64_t size) {
    return present ? arena->Take<float>(size) : nullptr;
  };
  layers_.resize(static_cast<size_t>(shape_.num_layers));
  for (DeviceLayerWeights<T>& layer : layers_) {
    layer.attention_norm = arena->Take<float>(hidden_size);
    layer.qkv = arena->Take<T>(qkv_size * hidden_size);
    layer.qkv_bias = bias(shape_.attention_qkv_bias, qkv_size);
    layer.output = arena->Take<T>(hidden_size * shape_.query_size());
    layer.output_bias = bias(shape_.attention_output_bias, hidden_size);
    layer.mlp_norm = arena->Take<float>(hidden_size);
    layer.gate_up = arena->Take<T>(gate_up_size * hidden_size);
    layer.gate_up_bias = bias(shape_.mlp_bias, gate_up_size);
    layer.down = arena->Take<T>(hidden_size * shape_.intermediate_size);
    layer.down_bias = bias(shape_.mlp_bias, hidden_size);
  }
  final_norm_ = arena->Take<float>(hidden_size);
  lm_head_ = arena->Take<T>(shape_.vocab_size * hidden_size);
  embedding_ = shape_.tied_embeddings ? lm_head_ : arena->Take<T>(shape_.vocab_size * hidden_size);
  inverse_frequencies_ = arena->Take<float>(shape_.head_dim / 2);
}

template <typename T>
absl::Status DeviceWeights<T>::Allocate(int64_t limit_bytes) {
  arena_ = DeviceArena();
  DeviceArena count;
  LayOut(&count);
  TIDAL_ASSIGN_OR_RETURN(
      arena_, DeviceArena::Allocate(count.used_bytes(), limit_bytes, "the model's weights"));
  LayOut(&arena_);
  TIDAL_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(inverse_frequencies_, shape_.rope_inverse_frequencies.data(),
                 shape_.rope_inverse_frequencies.size() * sizeof(float), cudaMemcpyHostToDevice));
  return absl::OkStatus();
}

template <typename T>
absl::Status DeviceWeights<T>::Load(const ModelWeights& weights, int64_t limit_bytes) {
  TIDAL_RETURN_IF_ERROR(Allocate(limit_bytes));
  Uploader uploader;
  const int64_t widest =
      std::max({shape_.hidden_size, shape_.query_size(), shape_.intermediate_size});
  const int64_t tallest = std::max<int64_t>(widest, shape_.vocab_size);
  TIDAL_RETURN_IF_ERROR(
      uploader.Init(widest * tallest * static_cast<int64_t>(SizeOf(DType::kFloat32))));
  const int32_t head_dim = shape_.head_dim;
  const int32_t query_size = shape_.query_size();
  const int32_t kv_size = shape_.kv_size();
  const RowMap whole;
  const RowMap query = {.paired_head_dim = head_dim};
  const RowMap key = {.offset = query_size, .paired_head_dim = head_dim};
  const RowMap value = {.offset = query_size + kv_size};
  const RowMap gate = {.offset = 0, .stride = 2};
  const RowMap up = {.offset = 1, .stride = 2};
  for (size_t i = 0; i < layers_.size(); ++i) {
    const DeviceLayerWeights<T>& layer = layers_[i];
    const LayerWeights& source = weights.layers[i];
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.attention_norm, whole, layer.attention_norm));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.query_projection, query, layer.qkv));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.key_projection, key, layer.qkv));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.value_projection, value, layer.qkv));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.query_bias, query, layer.qkv_bias));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.key_bias, key, layer.qkv_bias));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.value_bias, value, layer.qkv_bias));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.output_projection, whole, layer.output));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.output_bias, whole, layer.output_bias));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.mlp_norm, whole, layer.mlp_norm));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.gate_projection, gate, layer.gate_up));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.up_projection, up, layer.gate_up));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.gate_bias, gate, layer.gate_up_bias));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.up_bias, up, layer.gate_up_bias));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.down_projection, whole, layer.down));
    TIDAL_RETURN_IF_ERROR(uploader.Upload(source.down_bias, whole, layer.down_bias));
  }
  TIDAL_RETURN_IF_ERROR(uploader.Upload(weights.final_norm, whole, final_norm_));
  TIDAL_RETURN_IF_ERROR(uploader.Upload(
      shape_.tied_embeddings ? weights.embedding : weights.lm_head, whole, lm_head_));
  if (!shape_.tied_embeddings) {
    TIDAL_RETURN_IF_ERROR(uploader.Upload(weights.embedding, whole, embedding_));
  }
  return uploader.Finish();
}

template <typename T>
absl::Status DeviceWeights<T>::FillRandom(uint64_t seed, int64_t limit_bytes) {
  TIDAL_RETURN_IF_ERROR(Allocate(limit_bytes));
  Stream stream;
  TIDAL_RETURN_IF_ERROR(stream.Create());
  constexpr float kBiasDeviation = 0.02f;
  constexpr uint64_t kSeedsApart = uint64_t{1} << 40;  // more than any matrix has elements
  uint64_t next_seed = seed * 0x9E3779B97F4A7C15u;
  const auto fill_matrix = [&](T* matrix, int64_t outputs, int64_t inputs) {
    next_seed += kSeedsApart;
    return LaunchFillUniform(next_seed, 1.0f / std::sqrt(static_cast<float>(inputs)),
                             outputs * inputs, matrix, stream.get());
  };
  const auto fill_bias = [&](float* bias, int64_t size) {
    next_seed += kSeedsApart;
    return bias == nullptr ? cudaSuccess
                           : LaunchFillUniform(next_seed, kBiasDeviation, size, bias, stream.get());
  };
  const int64_t hidden_size = shape_.hidden_size;
  const int64_t qkv_size = shape_.query_size() + 2 * int64_t{shape_.kv_size()};
  const int64_t gate_up_size = 2 * int64_t{shape_.intermediate_size};
  for (const DeviceLayerWeights<T>& layer : layers_) {
    for (const cudaError_t error :
         {LaunchFill(1.0f, hidden_size, layer.attention_norm, stream.get()),
          LaunchFill(1.0f, hidden_size, layer.mlp_norm, stream.get()),
          fill_matrix(layer.qkv, qkv_size, hidden_size),
          fill_matrix(layer.output, hidden_size, shape_.query_size()),
          fill_matrix(layer.gate_up, gate_up_size, hidden_size),
          fill_matrix(layer.down, hidden_size, shape_.intermediate_size),
          fill_bias(layer.qkv_bias, qkv_size), fill_bias(layer.output_bias, hidden_size),
          fill_bias(layer.gate_up_bias, gate_up_size), fill_bias(layer.down_bias, hidden_size)}) {
      TIDAL_RETURN_IF_CUDA_ERROR(error);
    }
  }
  TIDAL_RETURN_IF_CUDA_ERROR(LaunchFill(1.0f, hidden_size, final_norm_, stream.get()));
  TIDAL_RETURN_IF_CUDA_ERROR(fill_matrix(lm_head_, shape_.vocab_size, hidden_size));
  if (!shape_.tied_embeddings) {
    TIDAL_RETURN_IF_CUDA_ERROR(fill_matrix(embedding_, shape_.vocab_size, hidden_size));
  }
  TIDAL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream.get()));
  return absl::OkStatus();
}

template class DeviceWeights<__nv_bfloat16>;
template class DeviceWeights<__half>;

}  // namespace tidal::cuda
