// A client in the same host that writes what it likes into the memory that it shares with the engine: ring
// positions, descriptors, headers, slots. It plays against a real RingSession with real grants, and knows
// from the protocol alone what has to come of each step.
//
// The race variant lets a second thread flip bytes of the submit segment while the engine reads them. These
// are data races by design, on memory that is the client's: ThreadSanitizer has nothing to say about them.

#include <fcntl.h>
#include <linux/falloc.h>

#include <atomic>
#include <optional>
#include <thread>

#include "engine/ring_session.h"
#include "fuzz.h"

namespace kvss::fuzz {
namespace {

using proto::Completion;
using proto::Descriptor;
using proto::Opcode;
using proto::Status;

constexpr uint32_t kEntries = 8;
constexpr uint32_t kCompletionEntries = 2 * kEntries;
constexpr uint64_t kEvictRing = 4096;
constexpr uint64_t kCommandRing = kEvictRing + kEntries * sizeof(Descriptor);
constexpr uint64_t kCompletionRing = 4096;

/// What the thread that races with the engine changes: bytes of the submit segment, again and again.
struct Flip {
  uint16_t at = 0;
  uint8_t mask = 0;
};

/// Flips bytes while it is told to. One thread for all inputs: to start one costs more than to play.
class Flipper {
 public:
  static Flipper& Instance() {
    static Flipper* const flipper = new Flipper;  // lives as long as its thread
    return *flipper;
  }

  void Start(std::byte* memory, std::vector<Flip> flips) {
    memory_ = memory;
    flips_ = std::move(flips);
    Become(State::kFlipping);
    // Only a thread that runs races.
    while (rounds_.load() == 0) std::this_thread::yield();
  }
  void Stop() {
    Become(State::kStopping);
    state_.wait(State::kStopping);
    rounds_ = 0;
  }

 private:
  enum class State { kIdle, kFlipping, kStopping };

  Flipper() {
    std::thread([this] { Loop(); }).detach();
  }
  void Become(State state) {
    state_ = state;
    state_.notify_all();
  }
  // Not a part of what is tested: its coverage would be that of the scheduler.
  __attribute__((no_sanitize("address", "undefined"))) void Loop() {
    for (;;) {
      state_.wait(State::kIdle);
      while (state_.load(std::memory_order_relaxed) == State::kFlipping) {
        for (const Flip& flip : flips_) {
          __atomic_fetch_xor(reinterpret_cast<uint8_t*>(memory_) + flip.at, flip.mask, __ATOMIC_RELAXED);
        }
        rounds_.fetch_add(1);
      }
      Become(State::kIdle);
    }
  }

  std::byte* memory_ = nullptr;
  std::vector<Flip> flips_;
  std::atomic<State> state_{State::kIdle};
  std::atomic<uint64_t> rounds_{0};
};

/// What the client may believe of a slot.
struct SlotView {
  uint64_t generation = 0;
  uint64_t tenant_tag = 0;
  bool stored = false;
};

class HostileRing {
 public:
  explicit HostileRing(bool racing)
      : racing_(racing), session_(Must(RingSession::Create(1, kEntries, &tally_))) {
    auto endpoints = Must(session_->Endpoints());
    submit_ = Must(Mapping::Map(endpoints.submit_segment.get(), kCommandRing + 512, Access::kReadWrite));
    status_ = Must(Mapping::Map(endpoints.status_segment.get(), 8192, Access::kRead));
    submit_fd_ = std::move(endpoints.submit_segment);
    AddGrant(1);
    AddGrant(7);
  }

  ~HostileRing() { Finish(); }

  void Play(Script script) {
    if (racing_) {
      std::vector<Flip> flips;
      for (int count = script.Byte() % 8 + 1; count > 0; --count) {
        // Anywhere, or in a field of a descriptor.
        constexpr uint16_t kFields[] = {0, 2, 4, 8, 9, 12, 16, 32};
        const auto choice = script.Take<uint16_t>();
        const uint64_t at = choice & 0x8000 ? kEvictRing + choice / 8 % (2 * kEntries) * sizeof(Descriptor) +
                                                  kFields[choice % 8]
                                            : choice % submit_.bytes();
        flips.push_back({static_cast<uint16_t>(at), script.Byte()});
      }
      Flipper::Instance().Start(submit_.data(), std::move(flips));
    }
    while (!script.over()) Step(script);
    if (racing_) Flipper::Instance().Stop();
  }

 private:
  proto::SubmitSegment& submit() const { return *submit_.At<proto::SubmitSegment>(0); }
  const proto::StatusSegment& status() const { return *status_.At<const proto::StatusSegment>(0); }
  Descriptor* Ring(bool evict) const {
    return submit_.At<Descriptor>(evict ? kEvictRing : kCommandRing, kEntries);
  }
  std::atomic<uint64_t>& Tail(bool evict) const {
    return evict ? submit().evict_tail : submit().command_tail;
  }
  uint64_t Head(bool evict) const {
    return (evict ? status().evict_head : status().command_head).load(std::memory_order_acquire);
  }
  Ledger& Queue(bool evict) { return evict ? evicts_ : commands_; }

  void Step(Script& script) {
    const uint8_t step = script.Byte();
    switch (step % 16) {
      case 0: {
        const uint16_t at = script.Take<uint16_t>() % submit_.bytes();
        const auto bytes = script.Bytes(std::min<uint64_t>(script.Byte(), submit_.bytes() - at));
        if (!bytes.empty()) std::memcpy(submit_.data() + at, bytes.data(), bytes.size());
        break;
      }
      case 1:
      case 2: {
        const bool evict = step % 16 == 1;
        Ring(evict)[Tail(evict) % kEntries] = TakeDescriptor(script, evict, grants_);
        ++Tail(evict);
        break;
      }
      case 3:
        Tail(step & 16) += static_cast<uint64_t>(script.Take<int8_t>());
        break;
      case 4:
        Tail(step & 16) = script.Take<uint64_t>();
        break;
      case 5:
        ReadCompletions();
        break;
      case 6:
        submit().completion_head += static_cast<uint64_t>(script.Take<int8_t>());
        break;
      case 7:
        submit().completion_head = script.Take<uint64_t>();
        break;
      case 8:
        now_ns_ += uint64_t{1} << (script.Byte() % 44);
        break;
      case 9:
        Pump();
        break;
      case 10:
        Pump();
        ReadCompletions();
        break;
      case 11:
        Ask(step & 16);
        break;
      case 12:
        AddGrant(script.Byte() % 4 * 2 + 1);
        break;
      case 13:
        RemoveGrant(script.Byte() % 4 * 2 + 1);
        break;
      case 14:
        Scribble(script);
        break;
      case 15:
        Punch(script);
        break;
    }
  }

  // --- what a client can do besides rings ------------------------------------------------------------------

  void AddGrant(uint32_t id) {
    // The daemon refuses a number that is taken before it comes to the session.
    if (grants_.contains(id)) return;
    auto grant = std::make_unique<Grant>(id, id == 7 ? 2 : 4, id == 7 ? 5000 : 100, false);
    FUZZ_EXPECT(session_->AddGrant(id, &grant->memory).ok());
    slots_[id].assign(grant->geometry().slots, {});
    grants_.emplace(id, std::move(grant));
  }

  void RemoveGrant(uint32_t id) {
    const Outcome removed = session_->RemoveGrant(id);
    if (!grants_.contains(id)) {
      FUZZ_EXPECT(removed.error().status == Status::kBadGrant);
      return;
    }
    const bool idle = evicts_.Unfinished() + commands_.Unfinished() == 0;
    if (!racing_) FUZZ_EXPECT(removed.ok() == idle);
    if (!removed.ok()) return;
    grants_.erase(id);
    slots_.erase(id);
  }

  void Scribble(Script& script) {
    if (grants_.empty()) return;
    Grant& grant = *std::next(grants_.begin(), script.Byte() % grants_.size())->second;
    const uint64_t at = script.Take<uint16_t>() % grant.expected.size();
    const uint64_t bytes = std::min<uint64_t>(script.Byte(), grant.expected.size() - at);
    const auto value = static_cast<std::byte>(script.Byte());
    std::memset(grant.view.data() + at, static_cast<int>(value), bytes);
    std::memset(grant.expected.data() + at, static_cast<int>(value), bytes);
  }

  /// Gives pages back that the engine uses too. They read as zeros afterwards.
  void Punch(Script& script) {
    const uint8_t which = script.Byte();
    constexpr int kHole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if (which & 1) {
      FUZZ_EXPECT(::fallocate(submit_fd_.get(), kHole, which & 2 ? 4096 : 0, 4096) == 0);
      return;
    }
    const auto grant = grants_.find(which & 2 ? 7 : 1);
    if (grant == grants_.end()) return;
    FUZZ_EXPECT(::fallocate(grant->second->memory.object.fd(), kHole, 0, 4096) == 0);
    std::memset(grant->second->expected.data(), 0, 4096);
  }

  void ReadCompletions() { submit().completion_head = status().completion_tail.load(); }

  // --- the engine's turn -----------------------------------------------------------------------------------

  /// What the engine asks on its way to sleep.
  void Ask(bool sleeping) {
    const bool possible = PositionsPossible();
    const bool work = session_->HasWork();
    if (!racing_ && !fault_ && (!possible || EvictsTakeable(possible) > 0)) FUZZ_EXPECT(work);
    (void)session_->Unfinished();
    (void)session_->next_deadline_ns();
    session_->AnnounceSleep(sleeping);
    FUZZ_EXPECT(status().engine_sleeping.load() == (sleeping ? 1u : 0u));
    NoteFault();
  }

  bool PositionsPossible() const {
    return submit().evict_tail.load() - Head(true) <= kEntries &&
           submit().command_tail.load() - Head(false) <= kEntries &&
           status().completion_tail.load() - submit().completion_head.load() <= kCompletionEntries;
  }

  void NoteFault() {
    const std::optional<SessionFault> fault = session_->ReportFault();
    if (!fault) return;
    FUZZ_EXPECT(!fault_ && *fault == SessionFault::kRing);
    fault_ = fault;
    FUZZ_EXPECT(!session_->ReportFault() && !session_->HasWork() && !session_->Unfinished());
    FUZZ_EXPECT(session_->next_deadline_ns() == UINT64_MAX);
  }

  void Pump() {
    if (racing_) return PumpRacing();
    const bool possible = PositionsPossible();
    // Numbers that name the place in the ring, so that a completion says whose it is.
    Descriptor rings[2][kEntries];
    for (const bool evict : {false, true}) {
      for (uint32_t ahead = 0; ahead < kEntries; ++ahead) {
        const uint64_t position = Head(evict) + ahead;
        Ring(evict)[position % kEntries].user_data = position * 2 + evict;
      }
      std::memcpy(rings[evict], Ring(evict), sizeof(rings[evict]));
    }
    const uint64_t heads[2] = {Head(false), Head(true)};
    const uint32_t takeable = EvictsTakeable(possible);
    const bool was_faulty = fault_.has_value();
    const ShardTally tally_before = tally_;

    const bool worked = session_->Pump(now_ns_);
    NoteFault();
    FUZZ_EXPECT(fault_.has_value() == (was_faulty || !possible));
    for (const bool evict : {false, true}) {
      const uint64_t taken = Head(evict) - heads[evict];
      FUZZ_EXPECT(taken <= kEntries && taken <= Tail(evict) - heads[evict]);
      for (uint64_t ahead = 0; ahead < taken; ++ahead) {
        Queue(evict).entries.push_back({rings[evict][(heads[evict] + ahead) % kEntries], now_ns_});
      }
      FUZZ_EXPECT(taken == 0 || worked);
      if (evict && !fault_) FUZZ_EXPECT(taken == takeable);
    }
    JudgeCompletions();
    if (was_faulty) {
      FUZZ_EXPECT(!worked && std::memcmp(&tally_before, &tally_, sizeof(tally_)) == 0);
      FUZZ_EXPECT(Head(true) == heads[true] && Head(false) == heads[false]);
    }
    if (!fault_) ExpectNothingLeft();
    ExpectTally();
    for (const auto& [id, grant] : grants_) FUZZ_EXPECT(grant->Untouched());
  }

  /// Evicts that the engine has to take in this turn: as many as there are and all bounds allow.
  uint32_t EvictsTakeable(bool possible) const {
    if (!possible || fault_) return 0;
    const uint64_t waiting = submit().evict_tail.load() - Head(true);
    const uint64_t window = kEntries - (evicts_.entries.size() - evicts_.finished);
    const uint64_t unread = status().completion_tail.load() - submit().completion_head.load();
    const uint64_t room = kCompletionEntries - unread;
    const uint64_t unfinished = evicts_.Unfinished() + commands_.Unfinished();
    return static_cast<uint32_t>(std::min({waiting, window, room > unfinished ? room - unfinished : 0}));
  }

  void JudgeCompletions() {
    const uint64_t tail = status().completion_tail.load(std::memory_order_acquire);
    FUZZ_EXPECT(tail - judged_ <= kCompletionEntries);
    for (; judged_ != tail; ++judged_) Judge(CompletionAt(judged_));
    FUZZ_EXPECT(status().evict_count.load() == evicts_.finished);
    FUZZ_EXPECT(status().command_count.load() == commands_.finished);
  }

  Completion CompletionAt(uint64_t position) const {
    return status_.At<const Completion>(kCompletionRing, kCompletionEntries)[position % kCompletionEntries];
  }

  void Judge(const Completion& completion) {
    const bool evict = completion.user_data & 1;
    const uint64_t sequence = completion.user_data / 2 + 1;
    Ledger& queue = Queue(evict);
    FUZZ_EXPECT(queue.Knows(sequence) && completion.sequence == sequence);
    const Ledger::Entry& entry = queue.At(sequence);
    const Descriptor& descriptor = entry.descriptor;
    FUZZ_EXPECT(completion.opcode == descriptor.opcode && completion.slot == descriptor.slot);
    const auto status = static_cast<Status>(completion.status);
    const Status refusal = Refusal(descriptor, evict, grants_);
    if (status == Status::kDeadline) {
      FUZZ_EXPECT(now_ns_ >= DeadlineOf(entry));
    } else if (!evict || refusal == Status::kOk) {
      // Whatever ended in another way has passed its gate.
      FUZZ_EXPECT(Queue(!evict).finished >= descriptor.after);
      if (!evict) FUZZ_EXPECT(queue.finished == sequence - 1);
    }
    if (refusal != Status::kOk) {
      FUZZ_EXPECT(status == refusal || (status == Status::kDeadline && !evict));
    } else {
      evict ? JudgeEvict(sequence, descriptor, status) : JudgeCommand(descriptor, status);
      FUZZ_EXPECT(completion.generation == slots_[descriptor.grant_id][descriptor.slot].generation);
    }
    queue.Finish(sequence);
  }

  void JudgeEvict(uint64_t sequence, const Descriptor& descriptor, Status status) {
    SlotView& slot = slots_[descriptor.grant_id][descriptor.slot];
    const bool newer = descriptor.generation > slot.generation;
    if (status == Status::kDeadline) {
      // Its bytes may have been written already, so what they replaced is gone.
      if (newer) slot.stored = false;
      return;
    }
    FUZZ_EXPECT(!EarlierEvictInto(descriptor, sequence));
    FUZZ_EXPECT(status == (newer ? Status::kOk : Status::kBadGeneration));
    if (newer) slot = {descriptor.generation, descriptor.tenant_tag, true};
    stored_ += newer;
  }

  bool EarlierEvictInto(const Descriptor& descriptor, uint64_t sequence) {
    for (uint64_t earlier = evicts_.finished + 1; earlier < sequence; ++earlier) {
      const Ledger::Entry& entry = evicts_.At(earlier);
      if (!entry.done && entry.descriptor.grant_id == descriptor.grant_id &&
          entry.descriptor.slot == descriptor.slot) {
        return true;
      }
    }
    return false;
  }

  void JudgeCommand(const Descriptor& descriptor, Status status) {
    if (status == Status::kDeadline) return;
    SlotView& slot = slots_[descriptor.grant_id][descriptor.slot];
    const bool refill = descriptor.opcode == static_cast<uint16_t>(Opcode::kRefill);
    if (slot.generation != descriptor.generation) {
      FUZZ_EXPECT(status == (slot.generation == 0 ? Status::kMissEmpty : Status::kMissOverwritten));
    } else if (!slot.stored) {
      FUZZ_EXPECT(status == Status::kMissEmpty);
    } else if (refill && slot.tenant_tag != descriptor.tenant_tag) {
      FUZZ_EXPECT(status == Status::kMissTenant);
    } else {
      FUZZ_EXPECT(status == Status::kOk);
      if (refill) return;
      slot.stored = false;
      if (descriptor.flags == 0) return;
      scrubbed_ += descriptor.piece_bytes;
      std::ranges::fill(grants_.at(descriptor.grant_id)->ExpectedPiece(descriptor.slot), std::byte{0});
    }
  }

  /// After a turn nothing is left that could have been started or ended in it.
  void ExpectNothingLeft() {
    for (uint64_t sequence = evicts_.finished + 1; sequence <= evicts_.entries.size(); ++sequence) {
      const Ledger::Entry& entry = evicts_.At(sequence);
      if (entry.done) continue;
      FUZZ_EXPECT(DeadlineOf(entry) > now_ns_);
      FUZZ_EXPECT(commands_.finished < entry.descriptor.after ||
                  EarlierEvictInto(entry.descriptor, sequence));
    }
    for (uint64_t sequence = commands_.finished + 1; sequence <= commands_.entries.size(); ++sequence) {
      if (!commands_.At(sequence).done) FUZZ_EXPECT(DeadlineOf(commands_.At(sequence)) > now_ns_);
    }
    if (commands_.finished < commands_.entries.size()) {
      FUZZ_EXPECT(evicts_.finished < commands_.At(commands_.finished + 1).descriptor.after);
    }
  }

  void ExpectTally() const {
    uint64_t stored = 0;
    for (const auto& [id, slots] : slots_) {
      stored += std::ranges::count_if(slots, [](const SlotView& slot) { return slot.stored; });
    }
    FUZZ_EXPECT(tally_.stored_slots == stored);
    FUZZ_EXPECT(tally_.evicts == stored_ && tally_.scrubbed_bytes == scrubbed_);
  }

  // --- with a thread that changes what the engine reads ----------------------------------------------------

  void PumpRacing() {
    const uint64_t scrubs = tally_.scrubbed_bytes;
    for (int turn = 0; turn < 64 && !fault_; ++turn) {
      // Keeps the rings full of whatever stands in them.
      submit().evict_tail = Head(true) + kEntries;
      submit().command_tail = Head(false) + kEntries;
      ReadCompletions();
      const uint64_t before[2] = {status().evict_count.load(), status().command_count.load()};
      (void)session_->Pump(now_ns_);
      NoteFault();
      FUZZ_EXPECT(status().evict_count.load() >= before[0] && status().evict_count.load() <= Head(true));
      FUZZ_EXPECT(status().command_count.load() >= before[1] && status().command_count.load() <= Head(false));
      const uint64_t tail = status().completion_tail.load();
      FUZZ_EXPECT(tail - judged_ <= kCompletionEntries && tail <= Head(true) + Head(false));
      for (; judged_ != tail; ++judged_) {
        const Completion completion = CompletionAt(judged_);
        FUZZ_EXPECT(completion.sequence != 0);
        FUZZ_EXPECT(completion.sequence <= std::max(Head(true), Head(false)));
        FUZZ_EXPECT(completion.sequence > std::min(before[0], before[1]));
      }
    }
    for (const auto& [id, grant] : grants_) ExpectOnlyScrubs(*grant, tally_.scrubbed_bytes != scrubs);
  }

  /// All that can have happened to the slots is that whole pieces have become zeros.
  void ExpectOnlyScrubs(Grant& grant, bool any) {
    for (uint32_t slot = 0; slot < grant.geometry().slots; ++slot) {
      const auto actual = grant.ActualPiece(slot);
      const auto zeros = [](std::byte byte) { return byte == std::byte{0}; };
      if (any && std::ranges::all_of(actual, zeros))
        std::ranges::fill(grant.ExpectedPiece(slot), std::byte{0});
    }
    FUZZ_EXPECT(grant.Untouched());
  }

  // --- the end ---------------------------------------------------------------------------------------------

  void Finish() {
    if (!fault_ && !racing_) {
      // Whatever was accepted ends by its deadline, if the client takes completions or not.
      now_ns_ += kForeverNs;
      Pump();
    }
    const uint64_t taken = Head(true) + Head(false);
    const uint64_t told = status().completion_tail.load();
    session_->Close(now_ns_);
    FUZZ_EXPECT(status().revoked.load() == 1);
    FUZZ_EXPECT(status().completion_tail.load() == told && Head(true) + Head(false) == taken);
    FUZZ_EXPECT(tally_.stored_slots == 0);
    if (!racing_) {
      // Those that were cut off are in the ring, behind its tail: each of them once.
      for (uint64_t left = evicts_.Unfinished() + commands_.Unfinished(); left > 0; --left) {
        const Completion completion = CompletionAt(judged_++);
        const bool evict = completion.user_data & 1;
        FUZZ_EXPECT(static_cast<Status>(completion.status) == Status::kCancelled);
        FUZZ_EXPECT(Queue(evict).Knows(completion.sequence));
        Queue(evict).Finish(completion.sequence);
      }
      FUZZ_EXPECT(evicts_.done + commands_.done == taken);
      for (const auto& [id, grant] : grants_) FUZZ_EXPECT(grant->Untouched());
    }
    session_.reset();
  }

  const bool racing_;
  ShardTally tally_;
  Grants grants_;
  std::unique_ptr<RingSession> session_;
  Mapping submit_;
  Mapping status_;
  UniqueFd submit_fd_;

  uint64_t now_ns_ = 1'000'000'000;
  std::optional<SessionFault> fault_;
  Ledger evicts_;
  Ledger commands_;
  std::map<uint32_t, std::vector<SlotView>> slots_;
  uint64_t judged_ = 0;  ///< completions looked at
  uint64_t stored_ = 0;
  uint64_t scrubbed_ = 0;
};

/// A session that has nothing to do with it, on the same shard. It lives through all inputs.
void ExpectNeighbourUnharmed() {
  struct Neighbour {
    ShardTally tally;
    Grant grant{1, 4, 100, false};
    std::unique_ptr<RingSession> session = Must(RingSession::Create(2, kEntries, &tally));
    Neighbour() { FUZZ_EXPECT(session->AddGrant(1, &grant.memory).ok()); }
  };
  static Neighbour* const neighbour = new Neighbour;
  FUZZ_EXPECT(neighbour->grant.Untouched());
  FUZZ_EXPECT(!neighbour->session->Pump(0) && !neighbour->session->ReportFault());
}

}  // namespace

void PlayRing(std::span<const uint8_t> input) {
  HostileRing(false).Play(Script(input));
  ExpectNeighbourUnharmed();
}

void PlayRingRace(std::span<const uint8_t> input) {
  HostileRing(true).Play(Script(input));
  ExpectNeighbourUnharmed();
}

}  // namespace kvss::fuzz
