// What hostile clients have taught, and the inputs that the fuzzers of test/fuzz keep. Where there is no
// clang, and so no fuzzer, these still run.

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "../fuzz/fuzz.h"
#include "engine/stream_session.h"
#include "harness.h"

namespace kvss {
namespace {

using proto::Descriptor;
using proto::LaneKind;
using proto::StreamHeader;
using proto::StreamType;

using test::Must;

// --- inputs that are kept
// -----------------------------------------------------------------------------------

using Play = void (*)(std::span<const uint8_t>);

/// Plays every input that is kept for a target. One that breaks a promise stops the program, so its name has
/// to be out before.
void PlayKept(const std::string& target, Play play) {
  size_t played = 0;
  for (const char* folder : {"corpus", "regressions"}) {
    const std::filesystem::path inputs = std::filesystem::path(KVSS_FUZZ_INPUTS) / folder / target;
    if (!std::filesystem::exists(inputs)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(inputs)) {
      std::ifstream file(entry.path(), std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
      std::cerr << "input " << folder << "/" << target << "/" << entry.path().filename().string()
                << std::endl;
      play({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
      ++played;
    }
  }
  CHECK(played > 10);
}

TEST("no kept input of a hostile client in shared memory breaks a promise") {
  PlayKept("ring", &fuzz::PlayRing);
}
TEST("no kept input of a hostile client that races with the engine breaks a promise") {
  PlayKept("ring_race", &fuzz::PlayRingRace);
}
TEST("no kept input of a hostile client over streams breaks a promise") {
  PlayKept("stream", &fuzz::PlayStream);
}

// --- what they have taught
// ----------------------------------------------------------------------------------

/// The client's end of a lane of a session that the test pumps itself.
UniqueFd Open(StreamSession& session, LaneKind kind) {
  int ends[2];
  CHECK_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
  UniqueFd client(ends[0]);
  CHECK(session.AddLane(kind, 0, UniqueFd(ends[1])).ok());
  proto::LaneWelcome welcome{};
  CHECK_EQ(::recv(client.get(), &welcome, sizeof(welcome), 0), static_cast<ssize_t>(sizeof(welcome)));
  return client;
}

template <typename T>
void Append(std::vector<char>& bytes, const T& value) {
  const auto* from = reinterpret_cast<const char*>(&value);
  bytes.insert(bytes.end(), from, from + sizeof(value));
}

/// Sends these bytes again and again until the kernel takes no more, and answers how many it took.
uint64_t Fill(int fd, const std::vector<char>& bytes) {
  uint64_t sent = 0;
  for (;;) {
    const ssize_t taken = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (taken <= 0) return sent;
    sent += static_cast<uint64_t>(taken);
  }
}

TEST("a frame of no descriptors ends the session: without end they would keep the engine in one turn") {
  ShardTally tally;
  StreamSession session(1, 8, false, &tally);
  const UniqueFd hio = Open(session, LaneKind::kHio);
  std::vector<char> empty;
  Append(empty, MakeHeader(StreamType::kDescriptors, 0, 0, 0));
  Fill(hio.get(), empty);
  session.Pump(1);
  CHECK(session.ReportFault() == SessionFault::kProtocol);
  session.Close(2);
}

TEST("a client that sends more than others get a turn for is read in parts") {
  ShardTally tally;
  StreamSession session(1, 8, false, &tally);
  const UniqueFd hio = Open(session, LaneKind::kHio);
  const UniqueFd evict = Open(session, LaneKind::kWioEvict);
  const int large = 16 * kLaneBytesPerTurn;
  if (::setsockopt(evict.get(), SOL_SOCKET, SO_SNDBUFFORCE, &large, sizeof(large)) != 0)
    SKIP("only root may make a socket this large");
  // Refused at once, because there is no such grant. The gigabyte behind it is read and thrown away.
  std::vector<char> refused;
  Append(refused, MakeHeader(StreamType::kDescriptors, sizeof(Descriptor), 0, 0));
  Append(refused, Descriptor{.opcode = 1, .piece_bytes = proto::kMaxPieceBytes, .generation = 1});
  CHECK_EQ(::send(hio.get(), refused.data(), refused.size(), 0), static_cast<ssize_t>(refused.size()));
  std::vector<char> header;
  Append(header, MakeHeader(StreamType::kPayload, proto::kMaxPieceBytes, 1, 1));
  CHECK_EQ(::send(evict.get(), header.data(), header.size(), 0), static_cast<ssize_t>(header.size()));
  const std::vector<char> some(64 * 1024);
  CHECK(Fill(evict.get(), some) > 2 * kLaneBytesPerTurn);
  session.Pump(1);
  // As much as was read there is room for again.
  CHECK(Fill(evict.get(), some) <= kLaneBytesPerTurn + kLaneBytesPerTurn / 2);
  CHECK(session.HasWork());
  CHECK(session.Pump(2));
  session.Close(3);
}

TEST("what waits for a slow reader takes no more memory than what waits") {
  int ends[2];
  CHECK_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
  const UniqueFd ours(ends[0]);
  const UniqueFd theirs(ends[1]);
  OutBuffer out;
  std::vector<char> chunk(4096);
  uint64_t appended = 0;
  size_t most = 0;
  // The reader takes as much as comes, and so always leaves something.
  while (appended < (64u << 20)) {
    while (out.size() < 64 * chunk.size()) out.Append(chunk.data(), chunk.size()), appended += chunk.size();
    CHECK(out.Flush(ours.get()) != StreamState::kEnded);
    (void)!::read(theirs.get(), chunk.data(), chunk.size());
    most = std::max(most, out.size());
  }
  CHECK(out.footprint() <= 4 * most);
}

}  // namespace
}  // namespace kvss
