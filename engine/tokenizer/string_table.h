// Strings numbered from 0, packed into one buffer. Immutable once filled.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tidal::tokenization {

class StringTable {
 public:
  void Append(std::string_view text) {
    characters_ += text;
    ends_.push_back(characters_.size());
  }

  size_t size() const { return ends_.size() - 1; }

  // Valid until the next Append. `index` < size().
  std::string_view operator[](size_t index) const {
    return std::string_view(characters_).substr(ends_[index], ends_[index + 1] - ends_[index]);
  }

 private:
  std::string characters_;
  std::vector<size_t> ends_ = {0};  // string i lies in [ends_[i], ends_[i + 1])
};

}  // namespace tidal::tokenization
