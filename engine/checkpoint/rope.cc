#include "engine/checkpoint/rope.h"

#include <cmath>
#include <numbers>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

using nlohmann::json;

constexpr double kMaxTheta = 1e15;
constexpr double kMaxFactor = 1e6;
constexpr double kMaxPositions = 1 << 27;

absl::Status RefusePartialRotation(const JsonFields& fields) {
  TIDAL_ASSIGN_OR_RETURN(const double rotated, fields.Number("partial_rotary_factor", 0, 1, 1.0));
  if (rotated == 1.0) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(fields.FullName("partial_rotary_factor"), " is ",
                                               rotated, "; only 1 is supported"));
}

absl::StatusOr<RopeType> ParseRopeType(const JsonFields& fields) {
  // "type" is the older name; files of some years carry both.
  const absl::string_view name = fields.Find("rope_type") != nullptr ? "rope_type" : "type";
  if (fields.Find(name) == nullptr && fields.Find("factor") != nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.FullName("rope_type"), " is missing, though ",
                     fields.FullName("factor"), " is given; supported: default, linear, llama3"));
  }
  TIDAL_ASSIGN_OR_RETURN(const std::string type, fields.String(name, "default"));
  if (type == "default") return RopeType::kDefault;
  if (type == "linear") return RopeType::kLinear;
  if (type == "llama3") return RopeType::kLlama3;
  return absl::UnimplementedError(absl::StrCat(fields.FullName(name), " is ", DescribeJson(type),
                                               "; supported: default, linear, llama3"));
}

absl::Status ParseLlama3(const JsonFields& fields, RopeConfig* rope) {
  TIDAL_ASSIGN_OR_RETURN(rope->low_freq_factor, fields.Number("low_freq_factor", 1e-6, kMaxFactor));
  TIDAL_ASSIGN_OR_RETURN(rope->high_freq_factor,
                         fields.Number("high_freq_factor", 1e-6, kMaxFactor));
  TIDAL_ASSIGN_OR_RETURN(rope->original_max_position_embeddings,
                         fields.Number("original_max_position_embeddings", 1, kMaxPositions));
  if (rope->high_freq_factor > rope->low_freq_factor) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(fields.FullName("high_freq_factor"), " is ", rope->high_freq_factor,
                   "; supported: above low_freq_factor, which is ", rope->low_freq_factor));
}

// One of the two spellings: `object` is config's field `name`.
absl::StatusOr<RopeConfig> ParseRopeObject(absl::string_view name, const json& object,
                                           double default_theta) {
  if (!object.is_object()) return UnsupportedValue(name, object, "objects, null");
  const JsonFields fields(object, absl::StrCat(name, "."));
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      return absl::UnimplementedError(
          absl::StrCat(fields.FullName(key), ": RoPE parameters by layer type are not supported"));
    }
  }
  TIDAL_RETURN_IF_ERROR(RefusePartialRotation(fields));

  RopeConfig rope;
  TIDAL_ASSIGN_OR_RETURN(rope.type, ParseRopeType(fields));
  TIDAL_ASSIGN_OR_RETURN(rope.theta, fields.Number("rope_theta", 1, kMaxTheta, default_theta));
  if (rope.type != RopeType::kDefault) {
    TIDAL_ASSIGN_OR_RETURN(rope.factor, fields.Number("factor", 1, kMaxFactor));
  }
  if (rope.type == RopeType::kLlama3) TIDAL_RETURN_IF_ERROR(ParseLlama3(fields, &rope));
  return rope;
}

}  // namespace

absl::StatusOr<RopeConfig> ParseRopeConfig(const JsonFields& config) {
  TIDAL_RETURN_IF_ERROR(RefusePartialRotation(config));
  RopeConfig rope;
  TIDAL_ASSIGN_OR_RETURN(rope.theta, config.Number("rope_theta", 1, kMaxTheta, rope.theta));

  const json* scaling = config.Find("rope_scaling");
  const json* parameters = config.Find("rope_parameters");
  if (scaling == nullptr && parameters == nullptr) return rope;
  if (scaling == nullptr) return ParseRopeObject("rope_parameters", *parameters, rope.theta);
  TIDAL_ASSIGN_OR_RETURN(RopeConfig scaled, ParseRopeObject("rope_scaling", *scaling, rope.theta));
  if (parameters == nullptr) return scaled;

  TIDAL_ASSIGN_OR_RETURN(const RopeConfig renamed,
                         ParseRopeObject("rope_parameters", *parameters, rope.theta));
  if (scaled == renamed) return scaled;
  return absl::InvalidArgumentError(
      absl::StrCat("rope_scaling is ", DescribeJson(*scaling), ", but rope_parameters is ",
                   DescribeJson(*parameters), "; supported: one of them, or both alike"));
}

std::vector<float> RopeInverseFrequencies(const RopeConfig& rope, int32_t head_dim) {
  std::vector<float> frequencies(static_cast<size_t>(head_dim / 2));
  const double low_freq_wavelength = rope.original_max_position_embeddings / rope.low_freq_factor;
  const double high_freq_wavelength = rope.original_max_position_embeddings / rope.high_freq_factor;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double frequency = std::pow(rope.theta, -2.0 * static_cast<double>(i) / head_dim);
    if (rope.type == RopeType::kLinear) frequency /= rope.factor;
    if (rope.type == RopeType::kLlama3) {
      const double wavelength = 2.0 * std::numbers::pi / frequency;
      if (wavelength > low_freq_wavelength) {
        frequency /= rope.factor;
      } else if (wavelength >= high_freq_wavelength) {
        const double smooth =
            (rope.original_max_position_embeddings / wavelength - rope.low_freq_factor) /
            (rope.high_freq_factor - rope.low_freq_factor);
        frequency = (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
      }
    }
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

}  // namespace tidal
