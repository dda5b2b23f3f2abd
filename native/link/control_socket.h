#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace kvss {

/// A packet of the control connection with the descriptors that came with it.
struct ControlPacket {
  std::vector<uint8_t> bytes;
  std::vector<UniqueFd> descriptors;
};

/// One end of a control connection: a Unix socket that keeps packet borders (SOCK_SEQPACKET), never blocks,
/// and carries descriptors.
class ControlSocket {
 public:
  /// Whether the socket keeps packet borders, or frames follow each other in a stream of bytes.
  enum class Framing { kPackets, kStream };

  explicit ControlSocket(UniqueFd fd, Framing framing = Framing::kPackets)
      : fd_(std::move(fd)), framing_(framing) {}

  static Result<ControlSocket> Connect(const std::string& path);

  /// Sends one packet. kLimitExceeded where the peer does not read and its queue is full.
  Outcome Send(const uint8_t* bytes, size_t length, const std::vector<UniqueFd>& descriptors);

  enum class Event { kPacket, kNothing, kEnd };
  /// Receives one packet where one waits. kEnd once the peer has gone, and for a packet that is too long or
  /// carries too many descriptors: none of it is kept.
  Event Receive(ControlPacket* packet);

  struct Peer {
    pid_t pid = 0;
    uid_t uid = 0;
    UniqueFd pidfd;  ///< readable once the process is dead; invalid where the kernel cannot say
  };
  Result<Peer> Identify() const;

  int fd() const { return fd_.get(); }

 private:
  Event ReceiveFromStream(ControlPacket* packet);

  UniqueFd fd_;
  Framing framing_;
  std::vector<uint8_t> partial_;  ///< of a frame that has not come whole
};

/// Listens at a path of the file system. Holds a lock beside it for as long as it lives, which is how a live
/// daemon is told from what a killed one left behind.
class ControlListener {
 public:
  /// Replaces the socket of a dead daemon; refuses with kNotAllowed where a live one holds it. The socket is
  /// accessible to this user only.
  static Result<ControlListener> Listen(const std::string& path);

  ControlListener(ControlListener&&) = default;
  ~ControlListener();

  /// The next connection, or an empty result where none waits.
  Result<std::optional<ControlSocket>> Accept();
  int fd() const { return fd_.get(); }

 private:
  ControlListener(std::string path, UniqueFd fd, UniqueFd lock)
      : path_(std::move(path)), fd_(std::move(fd)), lock_(std::move(lock)) {}

  std::string path_;
  UniqueFd fd_;
  UniqueFd lock_;
};

}  // namespace kvss
