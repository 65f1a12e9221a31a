#include "engine/checkpoint/checkpoint.h"

#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/checkpoint/json_fields.h"
#include "engine/checkpoint/mapped_file.h"
#include "engine/checkpoint/safetensors_file.h"

namespace tidal {
namespace {

using nlohmann::json;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexSizeBytes = 100'000'000;

// The files of one checkpoint, opened when a tensor of theirs is first asked for.
class TensorFiles {
 public:
  static absl::StatusOr<TensorFiles> Open(const std::string& directory);

  struct Tensor {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
  };
  // NOT_FOUND where the checkpoint has no such tensor.
  absl::StatusOr<Tensor> Find(const std::string& name);

 private:
  explicit TensorFiles(std::string directory) : directory_(std::move(directory)) {}

  absl::Status ReadIndex(const std::string& path);
  absl::StatusOr<const SafetensorsFile*> OpenFile(const std::string& file_name);

  std::string directory_;
  bool is_sharded_ = false;
  std::map<std::string, std::string> file_of_tensor_;  // where sharded
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;
};

absl::StatusOr<TensorFiles> TensorFiles::Open(const std::string& directory) {
  TensorFiles files(directory);
  const auto single = files.OpenFile(kSingleFile);
  if (single.ok()) return files;
  if (!absl::IsNotFound(single.status())) return single.status();

  const absl::Status sharded = files.ReadIndex(absl::StrCat(directory, "/", kIndexFile));
  if (absl::IsNotFound(sharded)) {
    return absl::NotFoundError(
        absl::StrCat(directory, ": has neither ", kSingleFile, " nor ", kIndexFile));
  }
  TIDAL_RETURN_IF_ERROR(sharded);
  files.is_sharded_ = true;
  return files;
}

// Whether `name` stays within the directory that it is appended to.
bool IsPlainFileName(absl::string_view name) {
  return !name.empty() && name != "." && name != ".." && !absl::StrContains(name, '/') &&
         !absl::StrContains(name, '\\') && !absl::StrContains(name, '\0');
}

absl::Status TensorFiles::ReadIndex(const std::string& path) {
  TIDAL_ASSIGN_OR_RETURN(const auto file, MappedFile::Open(path, kMaxIndexSizeBytes));
  const absl::StatusOr<json> index =
      ParseJsonObject({file->contents().data(), file->contents().size()});
  if (!index.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", index.status().message()));
  }
  const auto weight_map = index->find("weight_map");
  if (weight_map == index->end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map is not an object"));
  }
  for (const auto& [tensor, file_name] : weight_map->items()) {
    if (!file_name.is_string() || !IsPlainFileName(file_name.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": weight_map gives ", DescribeJson(tensor), " the file ",
                       DescribeJson(file_name), "; supported: file names within the directory"));
    }
    file_of_tensor_.emplace(tensor, file_name.get<std::string>());
  }
  return absl::OkStatus();
}

absl::StatusOr<const SafetensorsFile*> TensorFiles::OpenFile(const std::string& file_name) {
  std::unique_ptr<SafetensorsFile>& file = files_[file_name];
  if (file == nullptr) {
    TIDAL_ASSIGN_OR_RETURN(file, SafetensorsFile::Open(absl::StrCat(directory_, "/", file_name)));
  }
  return file.get();
}

absl::StatusOr<TensorFiles::Tensor> TensorFiles::Find(const std::string& name) {
  std::string file_name = kSingleFile;
  if (is_sharded_) {
    const auto found = file_of_tensor_.find(name);
    if (found == file_of_tensor_.end()) {
      return absl::NotFoundError(
          absl::StrCat(directory_, "/", kIndexFile, ": weight_map lacks tensor ", name));
    }
    file_name = found->second;
  }
  TIDAL_ASSIGN_OR_RETURN(const SafetensorsFile* file, OpenFile(file_name));
  const SafetensorsEntry* entry = file->Find(name);
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrCat(file->path(), ": lacks tensor ", name));
  }
  return Tensor{file, entry};
}

absl::StatusOr<DType> ServedDType(const std::string& dtype) {
  if (dtype == "F32") return DType::kFloat32;
  if (dtype == "F16") return DType::kFloat16;
  if (dtype == "BF16") return DType::kBFloat16;
  return absl::InvalidArgumentError(
      absl::StrCat("dtype is ", DescribeJson(dtype), "; supported: F32, F16, BF16"));
}

// Collects the views of the tensors that a model consists of. After the first error it does
// nothing more.
class WeightCollector {
 public:
  explicit WeightCollector(TensorFiles* files) : files_(*files) {}

  TensorView Vector(const std::string& name, int64_t size) {
    return Find(name, {size}, TensorView{nullptr, DType::kFloat32, 1, size});
  }
  TensorView Matrix(const std::string& name, int64_t rows, int64_t cols) {
    return Find(name, {rows, cols}, TensorView{nullptr, DType::kFloat32, rows, cols});
  }

  const absl::Status& status() const { return status_; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  TensorView Find(const std::string& name, const std::vector<int64_t>& shape, TensorView view) {
    if (!status_.ok()) return view;
    const auto tensor = files_.Find(name);
    if (!tensor.ok()) {
      status_ = tensor.status();
      return view;
    }
    const auto& [file, entry] = *tensor;
    const absl::StatusOr<DType> dtype = ServedDType(entry->dtype);
    if (!dtype.ok()) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat(file->path(), ": tensor ", name, ": ", dtype.status().message()));
      return view;
    }
    if (entry->shape != shape) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat(file->path(), ": tensor ", name, ": shape is ", DescribeShape(entry->shape),
                       "; config.json asks for ", DescribeShape(shape)));
      return view;
    }
    view.bytes = file->Bytes(*entry).data();
    view.dtype = *dtype;
    size_bytes_ += static_cast<int64_t>(view.size_bytes());
    return view;
  }

  TensorFiles& files_;
  absl::Status status_;
  int64_t size_bytes_ = 0;
};

LayerWeights CollectLayer(const ModelShape& shape, int32_t layer, WeightCollector* collector) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const auto name = [&prefix](absl::string_view suffix) { return absl::StrCat(prefix, suffix); };
  const int64_t hidden = shape.hidden_size;
  const int64_t intermediate = shape.intermediate_size;
  const int64_t query = shape.query_size();
  const int64_t kv = shape.kv_size();

  LayerWeights weights;
  weights.attention_norm = collector->Vector(name("input_layernorm.weight"), hidden);
  weights.query_projection = collector->Matrix(name("self_attn.q_proj.weight"), query, hidden);
  weights.key_projection = collector->Matrix(name("self_attn.k_proj.weight"), kv, hidden);
  weights.value_projection = collector->Matrix(name("self_attn.v_proj.weight"), kv, hidden);
  weights.output_projection = collector->Matrix(name("self_attn.o_proj.weight"), hidden, query);
  if (shape.attention_qkv_bias) {
    weights.query_bias = collector->Vector(name("self_attn.q_proj.bias"), query);
    weights.key_bias = collector->Vector(name("self_attn.k_proj.bias"), kv);
    weights.value_bias = collector->Vector(name("self_attn.v_proj.bias"), kv);
  }
  if (shape.attention_output_bias) {
    weights.output_bias = collector->Vector(name("self_attn.o_proj.bias"), hidden);
  }
  weights.mlp_norm = collector->Vector(name("post_attention_layernorm.weight"), hidden);
  weights.gate_projection = collector->Matrix(name("mlp.gate_proj.weight"), intermediate, hidden);
  weights.up_projection = collector->Matrix(name("mlp.up_proj.weight"), intermediate, hidden);
  weights.down_projection = collector->Matrix(name("mlp.down_proj.weight"), hidden, intermediate);
  if (shape.mlp_bias) {
    weights.gate_bias = collector->Vector(name("mlp.gate_proj.bias"), intermediate);
    weights.up_bias = collector->Vector(name("mlp.up_proj.bias"), intermediate);
    weights.down_bias = collector->Vector(name("mlp.down_proj.bias"), hidden);
  }
  return weights;
}

class MappedCheckpoint : public Checkpoint {
 public:
  MappedCheckpoint(TensorFiles files, ModelWeights weights, int64_t size_bytes)
      : files_(std::move(files)), weights_(std::move(weights)), size_bytes_(size_bytes) {}

  const ModelWeights& weights() const override { return weights_; }
  int64_t size_bytes() const override { return size_bytes_; }

 private:
  TensorFiles files_;  // the mappings that weights_ points into
  ModelWeights weights_;
  int64_t size_bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& directory,
                                                           const ModelConfig& config) {
  TIDAL_ASSIGN_OR_RETURN(TensorFiles files, TensorFiles::Open(directory));
  const ModelShape& shape = config.shape;
  WeightCollector collector(&files);
  ModelWeights weights;
  weights.embedding =
      collector.Matrix("model.embed_tokens.weight", shape.vocab_size, shape.hidden_size);
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    weights.layers.push_back(CollectLayer(shape, layer, &collector));
    TIDAL_RETURN_IF_ERROR(collector.status());
  }
  weights.final_norm = collector.Vector("model.norm.weight", shape.hidden_size);
  // Where the embeddings are tied, a head that is stored all the same is not the model's.
  if (!shape.tied_embeddings) {
    weights.lm_head = collector.Matrix("lm_head.weight", shape.vocab_size, shape.hidden_size);
  }
  TIDAL_RETURN_IF_ERROR(collector.status());
  const int64_t size_bytes = collector.size_bytes();
  return std::make_unique<MappedCheckpoint>(std::move(files), std::move(weights), size_bytes);
}

}  // namespace tidal
