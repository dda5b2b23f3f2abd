// What a client can do with the descriptors that it is given, as far as the kernel lets it: each attack on
// each of them, over ordinary and over huge pages. What is refused is refused by the kernel. What is allowed
// harms the attacker alone: after each attack another session works, and all memory comes back as zeros.

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <thread>

#include "engine/shard_host.h"
#include "harness.h"
#include "huge_page_pool.h"
#include "link/shard_lane.h"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif

namespace kvss {
namespace {

using proto::Completion;
using proto::Descriptor;
using proto::Opcode;
using proto::Status;
using test::HugePagePool;
using test::Must;

constexpr uint32_t kEntries = 8;
constexpr uint32_t kGrant = 1;
constexpr uint32_t kPieceBytes = 64 * 1024;
/// Two huge pages, so that a grant can have them.
constexpr uint32_t kSlots = 64;
constexpr uint64_t kGrantBytes = uint64_t{kSlots} * kPieceBytes;
constexpr int kPatienceMs = 20'000;
constexpr uint64_t kPage = 4096;

/// Answers 0 where an attack got through, and errno where it did not.
int Refusal(bool succeeded) { return succeeded ? 0 : errno; }

int MapWritable(int fd, int flags, uint64_t page) {
  void* data = ::mmap(nullptr, page, PROT_READ | PROT_WRITE, flags, fd, 0);
  const int refusal = Refusal(data != MAP_FAILED);
  if (data != MAP_FAILED) {
    std::memset(data, 0xee, kPage);
    CHECK_EQ(::munmap(data, page), 0);
  }
  return refusal;
}

int UpgradeMapping(int fd, uint64_t bytes) {
  void* data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  CHECK(data != MAP_FAILED);
  const int refusal = Refusal(::mprotect(data, bytes, PROT_READ | PROT_WRITE) == 0);
  ::munmap(data, bytes);
  return refusal;
}

UniqueFd Reopen(int fd, int flags) {
  return UniqueFd(::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), flags | O_CLOEXEC));
}

int Write(int fd) {
  const char byte = 0x5e;
  return Refusal(::pwrite(fd, &byte, 1, 8) == 1);
}

int Truncate(int fd, uint64_t bytes) { return Refusal(::ftruncate(fd, static_cast<off_t>(bytes)) == 0); }

int Allocate(int fd, int mode, uint64_t offset, uint64_t length) {
  return Refusal(::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0);
}

struct Attack {
  const char* name;
  /// The object, its length, and the page size behind it.
  int (*run)(int fd, uint64_t bytes, uint64_t page);
};

constexpr Attack kAttacks[] = {
    {"map it for writing", [](int fd, uint64_t, uint64_t page) { return MapWritable(fd, MAP_SHARED, page); }},
    {"map a private copy for writing",
     [](int fd, uint64_t, uint64_t page) { return MapWritable(fd, MAP_PRIVATE, page); }},
    {"make a mapping writable", [](int fd, uint64_t, uint64_t page) { return UpgradeMapping(fd, page); }},
    {"write into it", [](int fd, uint64_t, uint64_t) { return Write(fd); }},
    {"open it again and map it for writing",
     [](int fd, uint64_t, uint64_t page) {
       const UniqueFd again = Reopen(fd, O_RDWR);
       return again.valid() ? MapWritable(again.get(), MAP_SHARED, page) : errno;
     }},
    {"open it again and write into it",
     [](int fd, uint64_t, uint64_t) {
       const UniqueFd again = Reopen(fd, O_RDWR);
       return again.valid() ? Write(again.get()) : errno;
     }},
    {"open it again and empty it",
     [](int fd, uint64_t, uint64_t) { return Refusal(Reopen(fd, O_RDWR | O_TRUNC).valid()); }},
    {"shrink it", [](int fd, uint64_t bytes, uint64_t page) { return Truncate(fd, bytes - page); }},
    {"grow it", [](int fd, uint64_t bytes, uint64_t page) { return Truncate(fd, bytes + page); }},
    {"grow it by allocating",
     [](int fd, uint64_t bytes, uint64_t page) { return Allocate(fd, 0, bytes, page); }},
    {"punch holes into it",
     [](int fd, uint64_t bytes, uint64_t) {
       return Allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, bytes);
     }},
    {"seal it against writing",
     [](int fd, uint64_t, uint64_t) { return Refusal(::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0); }},
    {"seal it against new writers",
     [](int fd, uint64_t, uint64_t) { return Refusal(::fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0); }},
    {"seal it against seals",
     [](int fd, uint64_t, uint64_t) { return Refusal(::fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL) == 0); }},
    {"have every write append",
     [](int fd, uint64_t, uint64_t) { return Refusal(::fcntl(fd, F_SETFL, O_APPEND) == 0); }},
    {"forbid everybody to open it again",
     [](int fd, uint64_t, uint64_t) { return Refusal(::fchmod(fd, 0) == 0); }},
    {"lock it",
     [](int fd, uint64_t, uint64_t) {
       struct flock whole {};
       whole.l_type = F_WRLCK;
       return Refusal(::fcntl(fd, F_OFD_SETLK, &whole) == 0);
     }},
};

Descriptor Operation(Opcode opcode, uint32_t slot, uint64_t generation) {
  Descriptor descriptor{};
  descriptor.opcode = static_cast<uint16_t>(opcode);
  descriptor.flags = opcode == Opcode::kDelete ? proto::descriptor_flag::kScrub : 0;
  descriptor.grant_id = kGrant;
  descriptor.slot = slot;
  descriptor.piece_bytes = kPieceBytes;
  descriptor.generation = generation;
  descriptor.tenant_tag = 7;
  descriptor.timeout_us = 10'000'000;
  return descriptor;
}

/// A session as a client has it, with a copy of each descriptor.
struct Client {
  std::unique_ptr<ShardLane> lane;
  UniqueFd submit;
  UniqueFd status;
  UniqueFd grant;
  UniqueFd submit_wake;
  UniqueFd completion_wake;
  Mapping slots;

  static Client Open(ShardHost& host, uint64_t session) {
    SessionEndpoints endpoints = Must(host.OpenSession(session, kEntries));
    Client client;
    client.submit = UniqueFd(::dup(endpoints.submit_segment.get()));
    client.status = UniqueFd(::dup(endpoints.status_segment.get()));
    client.submit_wake = UniqueFd(::dup(endpoints.submit_wake.get()));
    client.completion_wake = UniqueFd(::dup(endpoints.completion_wake.get()));
    client.lane = Must(
        ShardLane::Attach(std::move(endpoints.submit_segment), std::move(endpoints.status_segment),
                          std::move(endpoints.submit_wake), std::move(endpoints.completion_wake), kEntries));
    client.grant = Must(host.AddGrant(session, kGrant, kSlots, kPieceBytes)).descriptor;
    client.slots = Must(Mapping::Map(client.grant.get(), kGrantBytes, Access::kReadWrite));
    return client;
  }

  /// The completion of an operation, looked for and not waited for: a wake may be what was attacked.
  Status Run(const Descriptor& descriptor) const {
    const auto queue = descriptor.opcode == static_cast<uint16_t>(Opcode::kEvict)
                           ? ShardLane::Queue::kEvict
                           : ShardLane::Queue::kCommand;
    CHECK_EQ(lane->Submit(queue, &descriptor, 1), 1u);
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
    while (std::chrono::steady_clock::now() < give_up) {
      Completion completion;
      if (lane->Poll(&completion, 1) == 1) return static_cast<Status>(completion.status);
      std::this_thread::yield();
    }
    FAIL("an operation of a session was not finished");
  }

  /// Everything that a session is for.
  void Work(uint64_t generation) const {
    std::fill_n(slots.data(), kPieceBytes, std::byte{0x77});
    CHECK_EQ(Run(Operation(Opcode::kEvict, 0, generation)), Status::kOk);
    CHECK_EQ(Run(Operation(Opcode::kRefill, 0, generation)), Status::kOk);
    CHECK(std::all_of(slots.data(), slots.data() + kPieceBytes,
                      [](std::byte byte) { return byte == std::byte{0x77}; }));
    CHECK_EQ(Run(Operation(Opcode::kDelete, 0, generation)), Status::kOk);
    CHECK(std::all_of(slots.data(), slots.data() + kPieceBytes,
                      [](std::byte byte) { return byte == std::byte{0}; }));
  }
};

/// A shard with an attacker and somebody else.
struct Box {
  std::unique_ptr<ShardHost> host;
  Client attacker;
  Client other;

  explicit Box(HugePages huge_pages)
      : host(Must(ShardHost::Create({.budget_bytes = 2 * kGrantBytes,
                                     .huge_pages = huge_pages,
                                     .engine = {.mode = HioMode::kBuffered}},
                                    [](uint64_t, SessionFault) {}))),
        attacker(Client::Open(*host, 1)),
        other(Client::Open(*host, 2)) {
    attacker.Work(1);
    other.Work(1);
  }

  /// Nobody but the attacker has noticed anything.
  void CheckOthers() {
    other.Work(2);
    std::fill_n(attacker.slots.data(), kGrantBytes, std::byte{0x55});
    const UniqueFd kept(::dup(attacker.grant.get()));
    host->CloseSession(1);
    CHECK(std::all_of(attacker.slots.data(), attacker.slots.data() + kGrantBytes,
                      [](std::byte byte) { return byte == std::byte{0}; }));
    other.Work(3);
    host->CloseSession(2);
    CHECK_EQ(host->allocator().free_bytes(), 2 * kGrantBytes);
  }
};

struct Target {
  const char* name;
  int (*descriptor)(const Box& box);
  /// Attacks that get through, because the attacker only harms itself by them.
  std::set<std::string> allowed;
};

// The private copy is the attacker's own. Locks and the mode of the file are nothing that the daemon asks
// about.
const std::set<std::string> kReadOnly = {"map a private copy for writing", "have every write append",
                                         "forbid everybody to open it again"};

std::set<std::string> With(std::set<std::string> names, const std::set<std::string>& others) {
  names.insert(others.begin(), others.end());
  return names;
}

const std::set<std::string> kOwn =
    With(kReadOnly, {"map it for writing", "make a mapping writable", "write into it",
                     "open it again and map it for writing", "open it again and write into it",
                     "punch holes into it", "lock it"});

const Target kTargets[] = {
    // The engine never writes it, reads zeros where a hole is, and has it mapped before the attacker can seal
    // it.
    {"submit segment", [](const Box& box) { return box.attacker.submit.get(); },
     With(kOwn, {"seal it against new writers", "seal it against seals"})},
    {"status segment", [](const Box& box) { return box.attacker.status.get(); },
     With(kReadOnly, {"lock it"})},
    {"grant", [](const Box& box) { return box.attacker.grant.get(); }, kOwn},
    {"counters segment", [](const Box& box) { return box.host->counters().object().fd(); },
     With(kReadOnly, {"lock it"})},
};

uint64_t LengthOf(int fd) {
  struct stat facts {};
  CHECK_EQ(::fstat(fd, &facts), 0);
  return static_cast<uint64_t>(facts.st_size);
}

uint64_t PageOf(int fd) {
  struct stat facts {};
  CHECK_EQ(::fstat(fd, &facts), 0);
  return static_cast<uint64_t>(facts.st_blksize);
}

void AttackAll(HugePages huge_pages) {
  for (const Target& target : kTargets) {
    for (const Attack& attack : kAttacks) {
      Box box(huge_pages);
      const int fd = target.descriptor(box);
      const bool huge = PageOf(fd) > kPage;
      const int refusal = attack.run(fd, LengthOf(fd), PageOf(fd));
      // hugetlbfs has no write().
      const bool possible = !huge || std::string(attack.name).find("write into it") == std::string::npos;
      const bool allowed = possible && target.allowed.contains(attack.name);
      std::cout << "# " << target.name << (huge ? " of huge pages" : "") << ": " << attack.name << ": "
                << (refusal == 0 ? "allowed, harms only the attacker"
                                 : std::string("refused, ") + strerrorname_np(refusal))
                << std::endl;
      if ((refusal == 0) != allowed) {
        FAIL(std::string(target.name) + ": " + attack.name +
             (refusal == 0 ? " got through" : " was refused"));
      }
      box.CheckOthers();
    }
  }
}

TEST("each attack on each memory object of a session is refused or harms only the attacker") {
  AttackAll(HugePages::kNever);
}

TEST(
    "each attack on each memory object of a session is refused or harms only the attacker, over huge pages") {
  const HugePagePool pool(8);
  {
    const Box probe(HugePages::kIfAvailable);
    if (PageOf(probe.attacker.grant.get()) == kPage) SKIP("another program has taken the huge pages");
  }
  AttackAll(HugePages::kIfAvailable);
}

TEST("an attacker who fills, blocks and closes its wakes holds up nobody, not even itself") {
  Box box(HugePages::kNever);
  Client& attacker = box.attacker;
  // Full, blocking and never read: the engine writes neither, and the other is a pipe with flags of its own.
  CHECK_EQ(::fcntl(attacker.submit_wake.get(), F_SETFL, 0), 0);
  const uint64_t full = UINT64_MAX - 1;
  CHECK_EQ(::fcntl(attacker.submit_wake.get(), F_SETFL, O_NONBLOCK), 0);
  (void)!::write(attacker.submit_wake.get(), &full, sizeof(full));
  CHECK_EQ(::fcntl(attacker.submit_wake.get(), F_SETFL, 0), 0);
  CHECK_EQ(::fcntl(attacker.completion_wake.get(), F_SETFL, 0), 0);
  // The end that reads can be opened again for writing.
  const UniqueFd writing = Reopen(attacker.completion_wake.get(), O_WRONLY | O_NONBLOCK);
  CHECK(writing.valid());
  std::vector<char> many(1 << 16, 'x');
  while (::write(writing.get(), many.data(), many.size()) > 0) {
  }
  CHECK_EQ(errno, EAGAIN);

  const Mapping submit = Must(Mapping::Map(attacker.submit.get(), kPage, Access::kReadWrite));
  submit.At<proto::SubmitSegment>(0)->client_sleeping.store(1);

  for (uint64_t generation = 10; generation < 30; ++generation) {
    submit.At<proto::SubmitSegment>(0)->client_sleeping.store(1);
    attacker.Work(generation);
    box.other.Work(generation);
  }
  // And nobody is left to read what is written.
  attacker.lane.reset();
  attacker.completion_wake.Reset();
  attacker.submit_wake.Reset();
  box.other.Work(40);
  box.host->CloseSession(1);
  box.host->CloseSession(2);
  CHECK_EQ(box.host->allocator().free_bytes(), 2 * kGrantBytes);
}

}  // namespace
}  // namespace kvss
