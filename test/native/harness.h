#pragma once

#include <iostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "base/result.h"

/// A small test harness: every TEST is a sentence, every failure says where and what. A CHECK throws, so it
/// also works in a thread whose future the test waits for.
namespace kvss::test {

struct Case {
  const char* name;
  void (*body)();
};
inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}
struct Registration {
  Registration(const char* name, void (*body)()) { Cases().push_back({name, body}); }
};

struct Failure {
  std::string why;
};
struct Skipped {
  std::string why;
};

template <typename T>
std::string Show(const T& value) {
  std::ostringstream out;
  if constexpr (std::is_enum_v<T>) {
    out << static_cast<long long>(value);
  } else {
    out << value;
  }
  return out.str();
}

template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) throw Failure{result.error().message};
  return std::move(result.value());
}

}  // namespace kvss::test

#define KVSS_JOIN_(left, right) left##right
#define KVSS_JOIN(left, right) KVSS_JOIN_(left, right)
#define KVSS_TEST_(name, id)                                               \
  static void id();                                                        \
  static const ::kvss::test::Registration KVSS_JOIN(id, Entry)(name, &id); \
  static void id()
#define TEST(name) KVSS_TEST_(name, KVSS_JOIN(Test, __LINE__))

#define KVSS_PLACE (std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": ")
#define FAIL(why) \
  throw ::kvss::test::Failure { KVSS_PLACE + (why) }
#define SKIP(why) \
  throw ::kvss::test::Skipped { why }
#define CHECK(condition)                \
  do {                                  \
    if (!(condition)) FAIL(#condition); \
  } while (false)
#define CHECK_EQ(actual, expected)                                                       \
  do {                                                                                   \
    const auto kvss_actual = (actual);                                                   \
    const std::decay_t<decltype(kvss_actual)> kvss_expected = (expected);                \
    if (!(kvss_actual == kvss_expected)) {                                               \
      FAIL(std::string(#actual " is ") + ::kvss::test::Show(kvss_actual) + " and not " + \
           ::kvss::test::Show(kvss_expected));                                           \
    }                                                                                    \
  } while (false)
