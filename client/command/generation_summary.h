// Figures of a finished generation, from its usage and timings. Pure functions.
#pragma once

#include <optional>
#include <string>

#include "tidal/inference/v1/inference.pb.h"

namespace tidal::client {

// attended_tokens / available_tokens: the share of the context that decode steps read, 0 to 1.
// Nothing where no decode step ran.
std::optional<double> AttendedShare(const inference::v1::Usage& usage);

// Tokens after the first, over the time of decoding. Nothing where there is no such token or time.
std::optional<double> DecodeTokensPerSecond(const inference::v1::Usage& usage,
                                            const inference::v1::Timings& timings);

// What a person reads at the end of a generation: one figure a line, each ended by a newline.
std::string SummaryText(const inference::v1::Usage& usage, const inference::v1::Timings& timings,
                        const inference::v1::EffectiveAttention& attention,
                        inference::v1::FinishReason finish_reason,
                        const inference::v1::MatchedStop& matched_stop);

}  // namespace tidal::client
