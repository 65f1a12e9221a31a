// The server's version, as the build declares it.
#pragma once

namespace tidal::server {

inline constexpr char kServerVersion[] = TIDAL_VERSION;

}  // namespace tidal::server
