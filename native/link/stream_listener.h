#pragma once

#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "proto/kvss_proto.h"

namespace kvss {

/// Where streams are accepted or made: host and port, or the path of a Unix socket if there is no port.
struct StreamAddress {
  std::string host_or_path;
  std::optional<uint16_t> port;
};

/// Listens for stream connections; they never block.
class StreamListener {
 public:
  static Result<StreamListener> Listen(const StreamAddress& address);
  /// The next connection, invalid where none waits.
  UniqueFd Accept();
  int fd() const { return fd_.get(); }
  /// The port that the kernel gave, 0 for a Unix socket.
  uint16_t port() const { return port_; }

 private:
  StreamListener(UniqueFd fd, uint16_t port) : fd_(std::move(fd)), port_(port) {}

  UniqueFd fd_;
  uint16_t port_ = 0;
};

/// Connects, says what the connection is for, and waits for the welcome. Blocks for at most `timeout_ms` in
/// all.
Result<UniqueFd> ConnectLane(const StreamAddress& address, const proto::LaneHello& hello, int timeout_ms);

/// The answer of the accepting side. Best effort: who does not take sixteen bytes has gone.
void AnswerLane(int fd, proto::Status status);

}  // namespace kvss
