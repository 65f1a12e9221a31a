// Early return on a failed absl::Status, and assignment from absl::StatusOr.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define TIDAL_CONCAT_INNER(a, b) a##b
#define TIDAL_CONCAT(a, b) TIDAL_CONCAT_INNER(a, b)

#define TIDAL_RETURN_IF_ERROR(expression)                                   \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

// TIDAL_ASSIGN_OR_RETURN(auto file, Open(path));
#define TIDAL_ASSIGN_OR_RETURN(declaration, expression) \
  TIDAL_ASSIGN_OR_RETURN_INNER(TIDAL_CONCAT(status_or_, __LINE__), declaration, expression)
#define TIDAL_ASSIGN_OR_RETURN_INNER(holder, declaration, expression) \
  auto holder = (expression);                                         \
  if (!holder.ok()) return std::move(holder).status();                \
  declaration = *std::move(holder)
