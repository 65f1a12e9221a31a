#include "engine/checkpoint/safetensors_header.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

using nlohmann::json;

constexpr size_t kMaxRank = 16;

constexpr std::array<std::pair<absl::string_view, int>, 22> kDTypeBits = {{
    {"BOOL", 8}, {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8},     {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"I16", 16}, {"F8_E5M2FNUZ", 8}, {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32}, {"U32", 32},        {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64}, {"U64", 64},
}};

// A name from the file, made safe to print.
std::string Quoted(absl::string_view name) {
  constexpr size_t kMaxLength = 200;
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(name.substr(0, kMaxLength)),
                      name.size() > kMaxLength ? "...\"" : "\"");
}

// Builds the entries from the parser's events, so that the memory used stays in proportion to what
// is kept, duplicate names are seen, and anything of unexpected form ends the parse at once.
class HeaderBuilder : public json::json_sax_t {
 public:
  bool null() override { return Scalar("null"); }
  bool boolean(bool) override { return Scalar("a boolean"); }
  bool number_integer(json::number_integer_t value) override { return Scalar(absl::StrCat(value)); }
  bool number_float(json::number_float_t, const std::string& text) override {
    return Scalar(absl::StrCat("number ", text.substr(0, 40)));
  }
  bool binary(json::binary_t&) override { return Scalar("binary"); }

  bool number_unsigned(json::number_unsigned_t value) override {
    if (skipped_depth_ > 0) return true;
    if (place_ == Place::kShape) return AddExtent(value);
    if (place_ == Place::kOffsets) return AddOffset(value);
    return Unexpected(absl::StrCat(value));
  }

  bool string(std::string& value) override {
    if (skipped_depth_ > 0) return true;
    if (place_ != Place::kTensor || field_ != "dtype") return Unexpected("a string");
    entry_.dtype = std::move(value);
    return true;
  }

  bool start_object(size_t) override {
    if (skipped_depth_ > 0) return Skip();
    if (place_ == Place::kFile) {
      place_ = Place::kHeader;
      return true;
    }
    if (place_ != Place::kHeader) return Unexpected("an object");
    if (name_ == "__metadata__") return Skip();
    place_ = Place::kTensor;
    entry_ = SafetensorsEntry();
    fields_.clear();
    return true;
  }

  bool key(std::string& name) override {
    if (skipped_depth_ > 0) return true;
    if (place_ == Place::kHeader) {
      name_ = std::move(name);
      if (header_.contains(name_) ||
          (name_ == "__metadata__" && std::exchange(has_metadata_, true))) {
        return Fail(absl::StrCat("tensor ", Quoted(name_), " is given twice"));
      }
      return true;
    }
    field_ = std::move(name);
    if (field_ != "dtype" && field_ != "shape" && field_ != "data_offsets") {
      return Fail(
          absl::StrCat("tensor ", Quoted(name_), " has the unknown field ", Quoted(field_)));
    }
    if (std::find(fields_.begin(), fields_.end(), field_) != fields_.end()) {
      return Fail(absl::StrCat("tensor ", Quoted(name_), " has ", field_, " twice"));
    }
    fields_.push_back(field_);
    return true;
  }

  bool end_object() override {
    if (skipped_depth_ > 0) return EndSkipped();
    if (place_ == Place::kHeader) {
      place_ = Place::kDone;
      return true;
    }
    if (fields_.size() != 3) {
      return Fail(absl::StrCat("tensor ", Quoted(name_), " has only ", fields_.size(),
                               " of the fields dtype, shape, data_offsets"));
    }
    place_ = Place::kHeader;
    header_.emplace(name_, std::move(entry_));
    return true;
  }

  bool start_array(size_t) override {
    if (skipped_depth_ > 0) return Skip();
    if (place_ != Place::kTensor || field_ == "dtype") return Unexpected("a list");
    place_ = field_ == "shape" ? Place::kShape : Place::kOffsets;
    num_offsets_ = 0;
    return true;
  }

  bool end_array() override {
    if (skipped_depth_ > 0) return EndSkipped();
    if (place_ == Place::kOffsets && num_offsets_ != 2) {
      return Fail(absl::StrCat("tensor ", Quoted(name_), ": data_offsets has ", num_offsets_,
                               " numbers; supported: 2"));
    }
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    return Fail(absl::StrCat("header is not valid JSON at byte ", position));
  }

  absl::StatusOr<SafetensorsHeader> Take(bool complete) {
    if (!status_.ok()) return status_;
    if (!complete) return absl::InvalidArgumentError("header is not a JSON object");
    return std::move(header_);
  }

 private:
  // Where in the header the parser is; kShape and kOffsets are the two lists within a tensor.
  enum class Place { kFile, kHeader, kTensor, kShape, kOffsets, kDone };

  bool Fail(absl::string_view message) {
    status_ = absl::InvalidArgumentError(message);
    return false;
  }

  bool Unexpected(absl::string_view what) {
    if (place_ == Place::kFile) return Fail(absl::StrCat("header is ", what, ", not an object"));
    if (place_ == Place::kHeader) {
      return Fail(absl::StrCat("tensor ", Quoted(name_), " is ", what, ", not an object"));
    }
    return Fail(absl::StrCat("tensor ", Quoted(name_), ": ", field_, " has ", what));
  }

  bool Scalar(absl::string_view what) { return skipped_depth_ > 0 || Unexpected(what); }

  bool Skip() {
    ++skipped_depth_;
    return true;
  }

  bool EndSkipped() {
    --skipped_depth_;
    return true;
  }

  bool AddExtent(uint64_t extent) {
    if (extent > INT64_MAX) return Unexpected(absl::StrCat(extent));
    if (entry_.shape.size() == kMaxRank) {
      return Fail(
          absl::StrCat("tensor ", Quoted(name_), ": shape has more than ", kMaxRank, " extents"));
    }
    entry_.shape.push_back(static_cast<int64_t>(extent));
    return true;
  }

  bool AddOffset(uint64_t offset) {
    (num_offsets_ == 0 ? entry_.begin : entry_.end) = offset;
    if (++num_offsets_ <= 2) return true;
    return Fail(absl::StrCat("tensor ", Quoted(name_), ": data_offsets has more than 2 numbers"));
  }

  Place place_ = Place::kFile;
  int64_t skipped_depth_ = 0;  // objects and lists open within __metadata__
  bool has_metadata_ = false;
  std::string name_;                 // of the tensor being read
  std::string field_;                // of that tensor
  std::vector<std::string> fields_;  // of that tensor so far
  SafetensorsEntry entry_;
  int num_offsets_ = 0;
  SafetensorsHeader header_;
  absl::Status status_;
};

// Nothing where it is no whole number of bytes or beyond 2^61: more than any file has.
std::optional<uint64_t> SizeInBytes(absl::Span<const int64_t> shape, int bits) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  uint64_t size_bits = static_cast<uint64_t>(bits);
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(size_bits, static_cast<uint64_t>(extent), &size_bits)) {
      return std::nullopt;
    }
  }
  if (size_bits % 8 != 0) return std::nullopt;
  return size_bits / 8;
}

absl::Status CheckEntry(const std::string& name, const SafetensorsEntry& entry,
                        uint64_t data_size) {
  if (entry.begin > entry.end || entry.end > data_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", Quoted(name), ": data_offsets is [", entry.begin, ", ", entry.end,
        "]; supported: ascending, up to the ", data_size, " bytes of the file's data"));
  }
  const int bits = SafetensorsDTypeBits(entry.dtype);
  if (bits == 0) return absl::OkStatus();  // refused only where it is used
  const uint64_t size_bytes = entry.end - entry.begin;
  if (SizeInBytes(entry.shape, bits) == size_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", Quoted(name), ": ", entry.dtype, " of shape ",
                   DescribeShape(entry.shape), " does not take the ", size_bytes,
                   " bytes of data_offsets [", entry.begin, ", ", entry.end, "]"));
}

absl::Status CheckNoOverlap(const SafetensorsHeader& header) {
  std::vector<const SafetensorsHeader::value_type*> by_offset;
  for (const auto& named_entry : header) {
    if (named_entry.second.begin < named_entry.second.end) by_offset.push_back(&named_entry);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const auto* a, const auto* b) { return a->second.begin < b->second.begin; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    if (by_offset[i]->second.begin < by_offset[i - 1]->second.end) {
      return absl::InvalidArgumentError(absl::StrCat("tensors ", Quoted(by_offset[i - 1]->first),
                                                     " and ", Quoted(by_offset[i]->first),
                                                     " overlap"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::Span<const char> header_json,
                                                         uint64_t data_size) {
  if (header_json.size() > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("header length is ", header_json.size(),
                                                   " bytes; supported: at most ",
                                                   kMaxSafetensorsHeaderBytes));
  }
  HeaderBuilder builder;
  const bool complete = json::sax_parse(header_json.begin(), header_json.end(), &builder);
  TIDAL_ASSIGN_OR_RETURN(SafetensorsHeader header, builder.Take(complete));
  for (const auto& [name, entry] : header) {
    TIDAL_RETURN_IF_ERROR(CheckEntry(name, entry, data_size));
  }
  TIDAL_RETURN_IF_ERROR(CheckNoOverlap(header));
  return header;
}

int SafetensorsDTypeBits(absl::string_view dtype) {
  for (const auto& [name, bits] : kDTypeBits) {
    if (name == dtype) return bits;
  }
  return 0;
}

std::string DescribeShape(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace tidal
