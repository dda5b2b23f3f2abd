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

/// A lane on its way: connects, says what the connection is for, and takes the welcome. Never blocks.
class LaneOpening {
 public:
  /// What has to happen to the descriptor before Continue() is called.
  enum class Wait : uint8_t { kWritable, kReadable, kNothing };

  /// Begins; the descriptor is to be waited for until it is writable. The host has to be a numeric address,
  /// because looking up a name blocks.
  static Result<LaneOpening> Begin(const StreamAddress& address, const proto::LaneHello& hello);
  /// Goes as far as it can. kNothing: the lane is open.
  Result<Wait> Continue();

  int fd() const { return fd_.get(); }
  /// Who the lane leads to, for messages.
  const std::string& name() const { return name_; }
  /// The open lane.
  UniqueFd Take() { return std::move(fd_); }

 private:
  LaneOpening(std::string name, UniqueFd fd, const proto::LaneHello& hello)
      : name_(std::move(name)), fd_(std::move(fd)), hello_(hello) {}

  std::string name_;
  UniqueFd fd_;
  proto::LaneHello hello_;
  proto::LaneWelcome welcome_{};
  size_t sent_ = 0;  ///< bytes of the hello
  size_t have_ = 0;  ///< bytes of the welcome
};

/// The answer of the accepting side. Best effort: who does not take sixteen bytes has gone.
void AnswerLane(int fd, proto::Status status);

}  // namespace kvss
