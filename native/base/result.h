#pragma once

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"
#include "proto/kvss_proto.h"

namespace kvss {

/// A fault of the world: a status with a stable code, and a sentence for the person who has to mend it.
struct Error {
  proto::Status status = proto::Status::kInternal;
  std::string message;
};

/// An Error that ends in the text of errno, e.g. SystemError(kNoMemory, "memfd_create").
inline Error SystemError(proto::Status status, const std::string& what) {
  const int saved = errno;
  return Error{status, what + ": " + std::strerror(saved)};
}

/// A value or an Error. The holder checks ok() first; reading the wrong side is our bug.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return std::holds_alternative<T>(state_); }
  T& value() {
    KVSS_CHECK(ok());
    return std::get<T>(state_);
  }
  const Error& error() const {
    KVSS_CHECK(!ok());
    return std::get<Error>(state_);
  }

 private:
  std::variant<T, Error> state_;
};

struct Nothing {};
using Outcome = Result<Nothing>;

}  // namespace kvss
