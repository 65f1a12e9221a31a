// An invariant of our own that breaks is a bug: say which, and abort. Never for bad input.
#pragma once

#include <cstdio>
#include <cstdlib>

#define TIDAL_CHECK(condition, message)                                                       \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      std::fprintf(stderr, "%s:%d: broken invariant: %s (%s)\n", __FILE__, __LINE__, message, \
                   #condition);                                                               \
      std::abort();                                                                           \
    }                                                                                         \
  } while (false)
