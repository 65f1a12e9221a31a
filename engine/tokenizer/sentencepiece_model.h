// libsentencepiece behind an interface without Abseil: its header declares a name that Abseil's
// headers declare too, so that no source file can include both. Immutable after Load; usable from
// any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tidal::tokenization {

class SentencePieceModel {
 public:
  SentencePieceModel();
  ~SentencePieceModel();

  // The error, if any, of each of these three.
  using Error = std::optional<std::string>;
  Error Load(std::string_view serialized_model);
  Error Encode(std::string_view text, std::vector<int32_t>* ids) const;
  Error Decode(const std::vector<std::string>& pieces, std::string* text) const;

  // Ids are 0..num_pieces() - 1.
  int32_t num_pieces() const;
  const std::string& PieceOf(int32_t id) const;
  std::optional<int32_t> IdOf(std::string_view piece) const;
  bool IsControl(int32_t id) const;
  bool IsByte(int32_t id) const;

 private:
  struct Processor;
  std::unique_ptr<Processor> processor_;
};

}  // namespace tidal::tokenization
