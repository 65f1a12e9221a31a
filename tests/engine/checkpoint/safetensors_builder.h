// Composes safetensors files for tests, well-formed unless asked otherwise.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace tidal {

// `length` little-endian in 8 bytes, then `header`, then `tensor_bytes`.
inline std::string ComposeSafetensors(uint64_t length, std::string_view header,
                                      std::string_view tensor_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(length >> (8 * i)));
  file += header;
  file += tensor_bytes;
  return file;
}

class SafetensorsBuilder {
 public:
  // Appends a tensor; `bytes` must have the size that dtype and shape imply.
  SafetensorsBuilder& Add(const std::string& name, const std::string& dtype,
                          const std::vector<int64_t>& shape, std::string_view bytes) {
    header_[name] = {{"dtype", dtype},
                     {"shape", shape},
                     {"data_offsets", {tensor_bytes_.size(), tensor_bytes_.size() + bytes.size()}}};
    tensor_bytes_ += bytes;
    return *this;
  }

  // The header's JSON, to be altered before Build.
  nlohmann::json& header() { return header_; }

  std::string Build() const {
    const std::string header = header_.dump();
    return ComposeSafetensors(header.size(), header, tensor_bytes_);
  }

 private:
  nlohmann::json header_ = {{"__metadata__", {{"format", "pt"}}}};
  std::string tensor_bytes_;
};

}  // namespace tidal
