#pragma once

#include <fstream>

#include "harness.h"

namespace kvss::test {

/// Raises the huge page pool of the machine for one test, and restores it.
class HugePagePool {
 public:
  explicit HugePagePool(uint64_t pages) : before_(Read()) {
    Write(before_ + pages);
    if (Read() < before_ + pages) {
      Write(before_);
      SKIP("this machine does not let the test raise /proc/sys/vm/nr_hugepages");
    }
  }
  ~HugePagePool() { Write(before_); }

  static uint64_t Read() {
    uint64_t pages = 0;
    std::ifstream(kPath) >> pages;
    return pages;
  }

 private:
  static constexpr const char* kPath = "/proc/sys/vm/nr_hugepages";
  static void Write(uint64_t pages) { std::ofstream(kPath) << pages << std::flush; }

  const uint64_t before_;
};

}  // namespace kvss::test
