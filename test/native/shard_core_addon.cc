// The shard core for the model test in test/core: every event of a ShardSession in order, and a port whose
// slots hold bytes that show what was torn or changed. test/core/shard_core.ts is the typed contract.

#include <napi.h>

#include <cmath>
#include <cstring>
#include <map>

#include "store/shard_session.h"

namespace kvss::testing {
namespace {

/// What a slot holds: a stamp in two halves, because a transfer takes time and is seen half done.
struct Halves {
  uint64_t left = 0;
  uint64_t right = 0;
};

class ShardCore final : public Napi::ObjectWrap<ShardCore>, private TransferPort, private CompletionSink {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "ShardCore",
                       {
                           InstanceMethod<&ShardCore::AddGrant>("addGrant"),
                           InstanceMethod<&ShardCore::RemoveGrant>("removeGrant"),
                           InstanceMethod<&ShardCore::SetAnswer>("setAnswer"),
                           InstanceMethod<&ShardCore::AcceptEvict>("acceptEvict"),
                           InstanceMethod<&ShardCore::AcceptCommand>("acceptCommand"),
                           InstanceMethod<&ShardCore::Finish>("finish"),
                           InstanceMethod<&ShardCore::Expire>("expire"),
                           InstanceMethod<&ShardCore::Close>("close"),
                           InstanceMethod<&ShardCore::TakeEvents>("takeEvents"),
                           InstanceMethod<&ShardCore::State>("state"),
                       });
  }

  explicit ShardCore(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<ShardCore>(info),
        session_(info[0].As<Napi::Number>().Uint32Value(), this, this, &tally_) {}

  ~ShardCore() override {
    // A test that failed half-way leaves transfers behind; the session insists on their end.
    session_.Close(0);
    while (!pending_.empty()) End(pending_.begin()->first, false, 0);
  }

 private:
  using Name = std::pair<TransferKind, uint64_t>;
  struct Pending {
    Transfer transfer;
    Halves read;  ///< kSend: what the slot held when the transfer began
  };

  enum class EventKind { kBegin, kEnd, kCancel, kCompletion };
  struct Event {
    EventKind kind;
    Transfer transfer{};
    TransferState state = TransferState::kDone;  ///< kEnd
    Halves first;                                ///< kEnd of a kSend: what it read at its begin
    Halves second;                               ///< kEnd: what the slot held then
    proto::Completion completion{};
  };

  // TransferPort

  TransferState Begin(const Transfer& transfer) override {
    events_.push_back({.kind = EventKind::kBegin, .transfer = transfer});
    Halves& slot = SlotOf(transfer);
    const Pending pending{transfer, slot};
    if (transfer.kind == TransferKind::kReceive) slot.left = transfer.user_data;
    if (transfer.kind == TransferKind::kScrub) slot.left = 0;
    if (answer_ == TransferState::kPending) {
      pending_.emplace(Name(transfer.kind, transfer.sequence), pending);
    } else {
      Touch(pending, answer_ == TransferState::kDone);
    }
    return answer_;
  }

  void Cancel(TransferKind kind, uint64_t sequence) override {
    events_.push_back({.kind = EventKind::kCancel, .transfer = {.kind = kind, .sequence = sequence}});
  }

  /// The second half of a transfer. One that fails stops in the middle.
  void Touch(const Pending& pending, bool succeeded) {
    Halves& slot = SlotOf(pending.transfer);
    if (succeeded && pending.transfer.kind == TransferKind::kReceive) slot.right = pending.transfer.user_data;
    if (succeeded && pending.transfer.kind == TransferKind::kScrub) slot.right = 0;
    events_.push_back({.kind = EventKind::kEnd,
                       .transfer = pending.transfer,
                       .state = succeeded ? TransferState::kDone : TransferState::kFailed,
                       .first = pending.read,
                       .second = slot});
  }

  void End(const Name& name, bool succeeded, uint64_t now_ns) {
    const Pending pending = pending_.at(name);
    pending_.erase(name);
    Touch(pending, succeeded);
    session_.TransferFinished(name.first, name.second, succeeded, now_ns);
  }

  // CompletionSink

  void Complete(const proto::Completion& completion) override {
    events_.push_back({.kind = EventKind::kCompletion, .completion = completion});
  }

  Halves& SlotOf(const Transfer& transfer) { return slots_[{transfer.grant_id, transfer.slot}]; }

  // JavaScript

  static uint64_t Time(const Napi::Value& value) {
    return static_cast<uint64_t>(value.As<Napi::Number>().Int64Value());
  }
  static Napi::Value StatusOf(Napi::Env env, Outcome outcome) {
    return Napi::Number::New(env, outcome.ok() ? 0 : static_cast<double>(outcome.error().status));
  }

  Napi::Value AddGrant(const Napi::CallbackInfo& info) {
    auto geometry = GrantGeometry::For(info[1].As<Napi::Number>().Uint32Value(),
                                       info[2].As<Napi::Number>().Uint32Value());
    if (!geometry.ok()) return StatusOf(info.Env(), geometry.error());
    const uint32_t grant_id = info[0].As<Napi::Number>().Uint32Value();
    // The memory of a grant is never anyone else's before.
    std::erase_if(slots_, [&](const auto& entry) { return entry.first.first == grant_id; });
    return StatusOf(info.Env(), session_.AddGrant(grant_id, geometry.value()));
  }

  Napi::Value RemoveGrant(const Napi::CallbackInfo& info) {
    return StatusOf(info.Env(), session_.RemoveGrant(info[0].As<Napi::Number>().Uint32Value()));
  }

  void SetAnswer(const Napi::CallbackInfo& info) {
    answer_ = static_cast<TransferState>(info[0].As<Napi::Number>().Uint32Value());
  }

  static proto::Descriptor DescriptorOf(const Napi::Value& value) {
    const auto bytes = value.As<Napi::Uint8Array>();
    if (bytes.ByteLength() != sizeof(proto::Descriptor)) {
      throw Napi::TypeError::New(value.Env(), "a descriptor has 64 bytes");
    }
    proto::Descriptor descriptor;
    std::memcpy(&descriptor, bytes.Data(), sizeof(descriptor));
    return descriptor;
  }

  void AcceptEvict(const Napi::CallbackInfo& info) {
    session_.AcceptEvict(DescriptorOf(info[0]), Time(info[1]));
  }
  void AcceptCommand(const Napi::CallbackInfo& info) {
    session_.AcceptCommand(DescriptorOf(info[0]), Time(info[1]));
  }

  void Finish(const Napi::CallbackInfo& info) {
    const Name name{static_cast<TransferKind>(info[0].As<Napi::Number>().Uint32Value()), Time(info[1])};
    if (!pending_.contains(name)) throw Napi::Error::New(info.Env(), "no such transfer is pending");
    End(name, info[2].As<Napi::Boolean>().Value(), Time(info[3]));
  }

  void Expire(const Napi::CallbackInfo& info) { session_.ExpireDeadlines(Time(info[0])); }
  void Close(const Napi::CallbackInfo& info) { session_.Close(Time(info[0])); }

  Napi::Value TakeEvents(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    Napi::Array out = Napi::Array::New(env, events_.size());
    for (uint32_t index = 0; index < events_.size(); ++index) {
      out.Set(index, ToJs(env, events_[index]));
    }
    events_.clear();
    return out;
  }

  static Napi::Value ToJs(Napi::Env env, const Event& event) {
    if (event.kind == EventKind::kCompletion) {
      Napi::Uint8Array bytes = Napi::Uint8Array::New(env, sizeof(proto::Completion));
      std::memcpy(bytes.Data(), &event.completion, sizeof(proto::Completion));
      return bytes;
    }
    const auto number = [&](uint64_t value) { return Napi::Number::New(env, static_cast<double>(value)); };
    Napi::Object out = Napi::Object::New(env);
    const char* const names[] = {"begin", "end", "cancel"};
    out.Set("type", names[static_cast<size_t>(event.kind)]);
    out.Set("kind", number(static_cast<uint64_t>(event.transfer.kind)));
    out.Set("sequence", number(event.transfer.sequence));
    if (event.kind == EventKind::kCancel) return out;
    out.Set("grantId", number(event.transfer.grant_id));
    out.Set("slot", number(event.transfer.slot));
    out.Set("offset", number(event.transfer.offset));
    out.Set("bytes", number(event.transfer.bytes));
    out.Set("generation", number(event.transfer.generation));
    out.Set("userData", number(event.transfer.user_data));
    if (event.kind == EventKind::kBegin) return out;
    out.Set("succeeded", Napi::Boolean::New(env, event.state == TransferState::kDone));
    Napi::Array halves = Napi::Array::New(env, 4);
    const uint64_t values[] = {event.first.left, event.first.right, event.second.left, event.second.right};
    for (uint32_t index = 0; index < 4; ++index) halves.Set(index, number(values[index]));
    out.Set("halves", halves);
    return out;
  }

  Napi::Value State(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto number = [&](uint64_t value) { return Napi::Number::New(env, static_cast<double>(value)); };
    Napi::Object out = Napi::Object::New(env);
    out.Set("evictCount", number(session_.evict_count()));
    out.Set("commandCount", number(session_.command_count()));
    out.Set("evictRoom", number(session_.EvictRoom()));
    out.Set("commandRoom", number(session_.CommandRoom()));
    out.Set("idle", Napi::Boolean::New(env, session_.idle()));
    out.Set("quiescent", Napi::Boolean::New(env, session_.quiescent()));
    const uint64_t deadline = session_.next_deadline_ns();
    out.Set("nextDeadlineNs", deadline == UINT64_MAX ? Napi::Number::New(env, INFINITY) : number(deadline));

    Napi::Object tally = Napi::Object::New(env);
    const std::pair<const char*, uint64_t> figures[] = {
        {"evicts", tally_.evicts},
        {"evictFaults", tally_.evict_faults},
        {"evictBytes", tally_.evict_bytes},
        {"refills", tally_.refills},
        {"refillMisses", tally_.refill_misses},
        {"refillFaults", tally_.refill_faults},
        {"refillBytes", tally_.refill_bytes},
        {"deletes", tally_.deletes},
        {"deleteMisses", tally_.delete_misses},
        {"tenantAlarms", tally_.tenant_alarms},
        {"deadlines", tally_.deadlines},
        {"gatedEvicts", tally_.gated_evicts},
        {"gatedCommands", tally_.gated_commands},
        {"scrubbedBytes", tally_.scrubbed_bytes},
        {"storedSlots", tally_.stored_slots},
    };
    for (const auto& [name, value] : figures) tally.Set(name, number(value));
    const auto buckets = [&](const auto& latency) {
      Napi::Array array = Napi::Array::New(env, latency.size());
      for (uint32_t index = 0; index < latency.size(); ++index) array.Set(index, number(latency[index]));
      return array;
    };
    tally.Set("evictLatency", buckets(tally_.evict_latency));
    tally.Set("refillLatency", buckets(tally_.refill_latency));
    out.Set("tally", tally);
    return out;
  }

  TransferState answer_ = TransferState::kPending;
  std::map<std::pair<uint32_t, uint32_t>, Halves> slots_;
  std::map<Name, Pending> pending_;
  std::vector<Event> events_;
  ShardTally tally_;
  ShardSession session_;
};

Napi::Object Initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("ShardCore", ShardCore::Define(env));
  return exports;
}

NODE_API_MODULE(kvss_testing, Initialise)

}  // namespace
}  // namespace kvss::testing
