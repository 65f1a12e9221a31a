// What Rust's regular expressions call a word character (\w): Alphabetic, Mark, Decimal_Number,
// Connector_Punctuation and Join_Control. Pure function.
#pragma once

namespace tidal::tokenization {

bool IsWordCharacter(char32_t code_point);

}  // namespace tidal::tokenization
