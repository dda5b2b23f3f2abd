#include <cstring>

#include "golden_vectors.h"
#include "harness.h"

namespace kvss {
namespace {

TEST("every golden vector has the bytes that C++ keeps it in, and reads back the same") {
  int vectors = 0;
  golden::ForEachVector([&](const char* name, const auto& value, const auto& bytes) {
    ++vectors;
    static_assert(sizeof(value) == sizeof(bytes));
    if (std::memcmp(&value, bytes, sizeof(bytes)) != 0) FAIL(std::string("encoding of ") + name);
    std::decay_t<decltype(value)> read;
    std::memcpy(&read, bytes, sizeof(bytes));
    if (std::memcmp(&read, &value, sizeof(value)) != 0) FAIL(std::string("decoding of ") + name);
  });
  CHECK(vectors >= 7);
}

}  // namespace
}  // namespace kvss
