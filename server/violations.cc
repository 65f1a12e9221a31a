#include "server/violations.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>

#include <vector>

#include "absl/strings/str_join.h"
#include "server/request_validation.h"
#include "server/status_mapping.h"

namespace tidal::server {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

void Violations::AddInvalid(absl::string_view field, absl::string_view description) {
  ++num_invalid_;
  Add(field, description);
}

void Violations::AddUnimplemented(absl::string_view field, absl::string_view description) {
  Add(field, description);
}

void Violations::Add(absl::string_view field, absl::string_view description) {
  if (++num_violations_ > kMaxViolations) return;
  google::rpc::BadRequest::FieldViolation* violation = bad_request_.add_field_violations();
  violation->set_field(std::string(field));
  violation->set_description(std::string(description));
}

void Violations::AddUnknownFields(const Message& message) {
  const Reflection* reflection = message.GetReflection();
  const google::protobuf::UnknownFieldSet& unknown = reflection->GetUnknownFields(message);
  for (int i = 0; i < unknown.field_count(); ++i) {
    AddUnimplemented(absl::StrCat("field ", unknown.field(i).number()),
                     absl::StrCat("is not known in message ", message.GetDescriptor()->name()));
  }
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    // The request messages repeat none of their own but the map, whose entries cannot hold any.
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_repeated()) continue;
    AddUnknownFields(reflection->GetMessage(message, field));
  }
}

absl::Status Violations::ToStatus() const {
  if (empty()) return absl::OkStatus();
  std::string message =
      absl::StrJoin(bad_request_.field_violations(), "; ",
                    [](std::string* out, const google::rpc::BadRequest::FieldViolation& violation) {
                      absl::StrAppend(out, violation.field(), ": ", violation.description());
                    });
  if (num_violations_ > kMaxViolations) {
    absl::StrAppend(&message, "; and ", num_violations_ - kMaxViolations, " more");
  }
  absl::Status status(
      num_invalid_ > 0 ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kUnimplemented,
      message);
  SetBadRequest(bad_request_, &status);
  return status;
}

}  // namespace tidal::server
