#include "shm/memory_object.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <thread>

#include "harness.h"
#include "huge_page_pool.h"
#include "shm/mapping.h"

namespace kvss {
namespace {

using test::HugePagePool;
using test::Must;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kHugePage = 2u << 20;

MemoryObject Small(uint64_t bytes) { return Must(MemoryObject::Create("test", bytes, HugePages::kNever)); }

Mapping Writable(const MemoryObject& object) {
  return Must(Mapping::Map(object.fd(), object.bytes(), Access::kReadWrite));
}

void Fill(const Mapping& mapping, uint8_t value) {
  std::fill_n(mapping.data(), mapping.bytes(), std::byte{value});
}

bool All(const Mapping& mapping, uint64_t from, uint64_t to, uint8_t value) {
  return std::all_of(mapping.data() + from, mapping.data() + to,
                     [&](std::byte byte) { return byte == std::byte{value}; });
}

/// Whether a writable shared mapping of this descriptor can be made.
bool MapsWritable(int fd) {
  void* data = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data != MAP_FAILED) ::munmap(data, kPage);
  return data != MAP_FAILED;
}

void PunchHole(int fd, uint64_t offset, uint64_t length) {
  CHECK_EQ(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                       static_cast<off_t>(length)),
           0);
}

/// The VmFlags of the mapping that starts at this address.
std::string VmFlags(const void* address) {
  std::ostringstream start;
  start << std::hex << reinterpret_cast<uintptr_t>(address) << "-";
  std::ifstream smaps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    if (line.rfind(start.str(), 0) == 0) inside = true;
    if (inside && line.rfind("VmFlags:", 0) == 0) return line + " ";
  }
  return "";
}

TEST("a new memory object holds only zeros") {
  const MemoryObject object = Small(3 * kPage);
  CHECK(All(Writable(object), 0, object.bytes(), 0));
}

TEST("the size of a memory object is rounded up to whole pages") {
  CHECK_EQ(Small(1).bytes(), kPage);
  CHECK_EQ(Small(kPage).bytes(), kPage);
  CHECK_EQ(Small(kPage + 1).bytes(), 2 * kPage);
}

TEST("nobody can shrink or grow a memory object, not even through a copy of its descriptor") {
  const MemoryObject object = Small(2 * kPage);
  const UniqueFd copy = Must(object.Duplicate());
  for (const int fd : {object.fd(), copy.get()}) {
    CHECK(::ftruncate(fd, kPage) != 0);
    CHECK(::ftruncate(fd, 3 * kPage) != 0);
    CHECK(::fallocate(fd, 0, 0, 3 * kPage) != 0);
  }
  CHECK(All(Writable(object), 0, 2 * kPage, 0));
}

TEST("a copy of the descriptor closes on exec") {
  const UniqueFd copy = Must(Small(kPage).Duplicate());
  CHECK_EQ(::fcntl(copy.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST("after ForbidMoreSeals a client cannot make the memory read-only for its owner") {
  MemoryObject object = Small(kPage);
  CHECK(object.ForbidMoreSeals().ok());
  const UniqueFd client = Must(object.Duplicate());
  for (const int seal : {F_SEAL_FUTURE_WRITE, F_SEAL_WRITE, F_SEAL_SEAL}) {
    CHECK(::fcntl(client.get(), F_ADD_SEALS, seal) != 0);
  }
  const Mapping mapping = Writable(object);
  Fill(mapping, 7);
  CHECK(object.Zero(0, kPage).ok());
  CHECK(All(mapping, 0, kPage, 0));
}

TEST("after ForbidNewWriters an old mapping still writes and no new one can be made") {
  MemoryObject object = Small(kPage);
  const Mapping old = Writable(object);
  CHECK(object.ForbidNewWriters().ok());
  const UniqueFd copy = Must(object.Duplicate());

  CHECK(!MapsWritable(copy.get()));
  const char byte = 1;
  CHECK(::pwrite(copy.get(), &byte, 1, 0) != 1);
  CHECK(::write(copy.get(), &byte, 1) != 1);
  const UniqueFd reopened(
      ::open(("/proc/self/fd/" + std::to_string(copy.get())).c_str(), O_RDWR | O_CLOEXEC));
  CHECK(!reopened.valid() || !MapsWritable(reopened.get()));
  CHECK(!reopened.valid() || ::pwrite(reopened.get(), &byte, 1, 0) != 1);
  CHECK(::fallocate(copy.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage) != 0);

  const Mapping reader = Must(Mapping::Map(copy.get(), kPage, Access::kRead));
  CHECK(::mprotect(reader.data(), kPage, PROT_READ | PROT_WRITE) != 0);
  CHECK(All(reader, 0, kPage, 0));
  Fill(old, 9);
  CHECK(All(reader, 0, kPage, 9));
}

TEST("after ForbidNewWriters nobody can add or take away seals") {
  MemoryObject object = Small(kPage);
  CHECK(object.ForbidNewWriters().ok());
  const int before = ::fcntl(object.fd(), F_GET_SEALS);
  CHECK(::fcntl(object.fd(), F_ADD_SEALS, F_SEAL_WRITE) != 0);
  CHECK_EQ(::fcntl(object.fd(), F_GET_SEALS), before);
}

TEST("Zero leaves no byte of its range and touches no byte outside") {
  MemoryObject object = Small(64 * kPage);
  const Mapping mapping = Writable(object);
  // Ends inside pages, longer than one write, empty, the first byte, the last byte.
  const std::pair<uint64_t, uint64_t> ranges[] = {
      {kPage + 1, 2 * kPage + 3}, {100, 50 * kPage}, {kPage, 0}, {0, 1}, {64 * kPage - 1, 1}};
  for (const auto& [offset, length] : ranges) {
    Fill(mapping, 0xa5);
    CHECK(object.Zero(offset, length).ok());
    CHECK(All(mapping, 0, offset, 0xa5));
    CHECK(All(mapping, offset, offset + length, 0));
    CHECK(All(mapping, offset + length, object.bytes(), 0xa5));
  }
}

TEST("Zero leaves no byte after another holder has punched holes") {
  MemoryObject object = Small(8 * kPage);
  const UniqueFd other = Must(object.Duplicate());
  const Mapping mapping = Writable(object);
  Fill(mapping, 0xa5);
  PunchHole(other.get(), kPage, 2 * kPage);
  PunchHole(other.get(), 5 * kPage + 100, 200);
  CHECK(object.Zero(100, 7 * kPage).ok());
  CHECK(All(mapping, 0, 100, 0xa5));
  CHECK(All(mapping, 100, 100 + 7 * kPage, 0));
  CHECK(All(mapping, 100 + 7 * kPage, object.bytes(), 0xa5));
}

TEST("Zero leaves no byte where another holder has switched the descriptor to appending") {
  MemoryObject object = Small(4 * kPage);
  const UniqueFd other = Must(object.Duplicate());
  const Mapping mapping = Writable(object);
  Fill(mapping, 0xa5);
  // A flag of what both descriptors share: pwrite would write at the end of the file, wherever it is told to.
  CHECK_EQ(::fcntl(other.get(), F_SETFL, O_APPEND), 0);
  CHECK(object.Zero(100, 2 * kPage).ok());
  CHECK(All(mapping, 0, 100, 0xa5));
  CHECK(All(mapping, 100, 100 + 2 * kPage, 0));
  CHECK(All(mapping, 100 + 2 * kPage, object.bytes(), 0xa5));
}

TEST("a mapping that somebody kept reads zeros once the pages were discarded") {
  MemoryObject object = Small(4 * kPage);
  const UniqueFd kept = Must(object.Duplicate());
  const Mapping mapping = Must(Mapping::Map(kept.get(), 4 * kPage, Access::kReadWrite));
  Fill(mapping, 0xa5);
  object.DiscardPages();
  CHECK(All(mapping, 0, 4 * kPage, 0));
}

TEST("a range that was discarded and populated again reads zeros") {
  MemoryObject object = Small(4 * kPage);
  const Mapping mapping = Writable(object);
  Fill(mapping, 0xa5);
  CHECK(object.DiscardRange(kPage, kPage).ok());
  CHECK(object.PopulateRange(kPage, kPage).ok());
  CHECK(All(mapping, 0, kPage, 0xa5));
  CHECK(All(mapping, kPage, 2 * kPage, 0));
  CHECK(All(mapping, 2 * kPage, 4 * kPage, 0xa5));
}

TEST("mappings are kept out of core dumps and of forked children") {
  MemoryObject object = Small(2 * kPage);
  const Mapping writer = Writable(object);
  const Mapping reader = Must(Mapping::Map(object.fd(), kPage, Access::kRead));
  for (const Mapping* mapping : {&writer, &reader}) {
    const std::string flags = VmFlags(mapping->data());
    CHECK(flags.find(" dd ") != std::string::npos);
    CHECK(flags.find(" dc ") != std::string::npos);
  }
}

TEST("a mapping that is longer than its object is refused") {
  const MemoryObject object = Small(kPage);
  CHECK_EQ(Mapping::Map(object.fd(), 2 * kPage, Access::kRead).error().status, proto::Status::kBadLength);
  CHECK_EQ(Mapping::Map(object.fd(), 0, Access::kRead).error().status, proto::Status::kBadLength);
}

TEST("something that is no memory object cannot be mapped") {
  int ends[2];
  CHECK_EQ(::pipe(ends), 0);
  const UniqueFd in(ends[0]);
  const UniqueFd out(ends[1]);
  CHECK(!Mapping::Map(in.get(), kPage, Access::kRead).ok());
}

MemoryObject Huge(uint64_t bytes) {
  // Another program on this machine may hold the pages for a moment.
  for (int attempt = 0; attempt < 50; ++attempt) {
    MemoryObject object = Must(MemoryObject::Create("test", bytes, HugePages::kIfAvailable));
    if (object.huge_pages()) return object;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  FAIL("no huge pages although the pool has them");
}

TEST("a memory object gets huge pages where the pool has them") {
  const HugePagePool pool(8);
  const MemoryObject object = Huge(kHugePage + 1);
  CHECK_EQ(object.bytes(), 2 * kHugePage);
  CHECK_EQ(object.granule(), kHugePage);
  const Mapping mapping = Writable(object);
  CHECK(All(mapping, 0, object.bytes(), 0));
  CHECK(VmFlags(mapping.data()).find(" ht ") != std::string::npos);
  CHECK(VmFlags(mapping.data()).find(" dd ") != std::string::npos);
}

TEST("a part of an object of huge pages can be mapped, and nothing of it stays mapped") {
  const HugePagePool pool(8);
  const MemoryObject object = Huge(2 * kHugePage);
  const void* address = nullptr;
  {
    // As a grant is, whose slots are not a whole number of huge pages.
    const Mapping mapping = Must(Mapping::Map(object.fd(), kHugePage + kPage, Access::kReadWrite));
    address = mapping.data();
    CHECK_EQ(mapping.bytes(), kHugePage + kPage);
    CHECK(VmFlags(address).find(" dd ") != std::string::npos);
    mapping.Populate();
    Fill(mapping, 7);
  }
  CHECK_EQ(VmFlags(address), "");
}

TEST("a memory object falls back to ordinary pages where the huge page pool is too small") {
  const HugePagePool pool(2);
  const uint64_t bytes = (HugePagePool::Read() + 1) * kHugePage;
  const MemoryObject object = Must(MemoryObject::Create("test", bytes, HugePages::kIfAvailable));
  CHECK(!object.huge_pages());
  CHECK_EQ(object.bytes(), bytes);
  CHECK_EQ(object.granule(), kPage);
}

TEST("a memory object below one huge page never takes one") {
  const HugePagePool pool(2);
  CHECK(!Must(MemoryObject::Create("test", kHugePage - 1, HugePages::kIfAvailable)).huge_pages());
}

TEST("Zero leaves no byte of a range of huge pages and touches no byte outside") {
  const HugePagePool pool(8);
  MemoryObject object = Huge(3 * kHugePage);
  const UniqueFd other = Must(object.Duplicate());
  const Mapping mapping = Writable(object);
  // Inside one page, across a border, a whole page in the middle.
  const std::pair<uint64_t, uint64_t> ranges[] = {
      {4096 + 64, 8192}, {kHugePage - 64, 128}, {1000, 2 * kHugePage + 5000}};
  for (const auto& [offset, length] : ranges) {
    Fill(mapping, 0xa5);
    CHECK(object.Zero(offset, length).ok());
    CHECK(All(mapping, 0, offset, 0xa5));
    CHECK(All(mapping, offset, offset + length, 0));
    CHECK(All(mapping, offset + length, object.bytes(), 0xa5));
  }
  Fill(mapping, 0xa5);
  PunchHole(other.get(), kHugePage, kHugePage);
  CHECK(object.Zero(0, object.bytes()).ok());
  CHECK(All(mapping, 0, object.bytes(), 0));
}

TEST("huge pages are sealed against resizing and read zeros once discarded") {
  const HugePagePool pool(8);
  MemoryObject object = Huge(2 * kHugePage);
  CHECK(::ftruncate(object.fd(), kHugePage) != 0);
  CHECK(::ftruncate(object.fd(), 3 * kHugePage) != 0);
  const Mapping mapping = Writable(object);
  Fill(mapping, 0xa5);
  object.DiscardPages();
  CHECK(All(mapping, 0, object.bytes(), 0));
}

}  // namespace
}  // namespace kvss
