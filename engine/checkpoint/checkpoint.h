// A checkpoint's weights, memory-mapped from `model.safetensors` or from the shards that
// `model.safetensors.index.json` names, checked against the model's shape.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/backend/tensor_view.h"
#include "engine/checkpoint/model_config.h"

namespace tidal {

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // Views into the mapped files, valid as long as this object.
  virtual const ModelWeights& weights() const = 0;

  // Bytes of all tensors that the model uses.
  virtual int64_t size_bytes() const = 0;
};

// Opens and checks every tensor that `config` needs. Errors name the file and the tensor: NOT_FOUND
// for a missing file or tensor, INVALID_ARGUMENT for a malformed header, an offset out of range, or
// a wrong dtype or shape (with both shapes). Tensors that the model does not use are ignored.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& directory,
                                                           const ModelConfig& config);

}  // namespace tidal
