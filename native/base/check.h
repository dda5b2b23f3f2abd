#pragma once

#include <cstdio>
#include <cstdlib>

/// For our own bugs only: prints where and stops. What the world does wrong is a Status, never a KVSS_CHECK.
#define KVSS_CHECK(condition)                                                                            \
  do {                                                                                                   \
    if (!(condition)) [[unlikely]] {                                                                     \
      std::fprintf(stderr, "kvss: internal check failed: %s (%s:%d)\n", #condition, __FILE__, __LINE__); \
      std::abort();                                                                                      \
    }                                                                                                    \
  } while (false)
