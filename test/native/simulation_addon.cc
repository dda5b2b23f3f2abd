// The native half of the simulation in test/sim: real sessions, lanes and memory without a thread and without
// a clock. TypeScript says which of them has its turn, what time it is and what becomes of bytes on their
// way. test/sim/native.ts is the typed contract.

#include <napi.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cmath>
#include <cstring>
#include <map>

#include "engine/ring_session.h"
#include "engine/stream_session.h"
#include "link/carrier_lane.h"
#include "link/shard_lane.h"
#include "link/stream_lane.h"
#include "link/stream_listener.h"
#include "store/column_allocator.h"

namespace kvss::testing {
namespace {

uint64_t Time(const Napi::Value& value) {
  return static_cast<uint64_t>(value.As<Napi::Number>().Int64Value());
}
uint32_t Number(const Napi::Value& value) { return value.As<Napi::Number>().Uint32Value(); }

/// As the product's addon does: src/binding makes a KvssError of it.
Napi::Error ToJsError(Napi::Env env, const Error& error) {
  Napi::Error thrown = Napi::Error::New(env, error.message);
  thrown.Set("status", Napi::Number::New(env, static_cast<double>(error.status)));
  return thrown;
}

template <typename T>
T Must(Napi::Env env, Result<T> result) {
  if (!result.ok()) throw ToJsError(env, result.error());
  return std::move(result.value());
}

bool Readable(int fd) {
  int bytes = 0;
  return ::ioctl(fd, FIONREAD, &bytes) == 0 && bytes > 0;
}

// ---- Wire: one connection, with the simulation between its two ends
// -------------------------------------------

class Wire : public Napi::ObjectWrap<Wire> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "Wire",
                       {
                           InstanceMethod<&Wire::Forward>("forward"),
                           InstanceMethod<&Wire::Waiting>("waiting"),
                           InstanceMethod<&Wire::Flip>("flip"),
                           InstanceMethod<&Wire::TakeWelcome>("takeWelcome"),
                           InstanceMethod<&Wire::End>("end"),
                       });
  }

  explicit Wire(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Wire>(info) {
    for (End_& end : ends_) {
      int pair[2];
      if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) {
        throw Napi::Error::New(info.Env(), "socketpair");
      }
      end.outer = UniqueFd(pair[0]);
      end.inner = UniqueFd(pair[1]);
    }
  }

  /// The end of the client (0) or of the shard (1), once.
  UniqueFd TakeEnd(size_t which) { return std::move(ends_[which].outer); }

 private:
  struct End_ {
    UniqueFd outer;  ///< what a lane or a session has
    UniqueFd inner;
    std::vector<std::byte> held;  ///< read from here and not yet given to the other end
    bool ended = false;
    bool end_passed = false;
  };

  void Fill(End_& from) {
    if (from.ended || !from.inner.valid()) return;
    std::byte bytes[65536];
    for (;;) {
      const ssize_t read = ::recv(from.inner.get(), bytes, sizeof(bytes), MSG_DONTWAIT);
      if (read == 0) from.ended = true;
      if (read <= 0) return;
      from.held.insert(from.held.end(), bytes, bytes + read);
    }
  }

  /// forward(from, most): gives the other end up to so many bytes; answers how many, or -1 when an end was
  /// passed on.
  Napi::Value Forward(const Napi::CallbackInfo& info) {
    End_& from = ends_[Number(info[0])];
    End_& to = ends_[1 - Number(info[0])];
    Fill(from);
    const size_t most = std::min<size_t>(from.held.size(), Number(info[1]));
    ssize_t sent = 0;
    if (most > 0 && to.inner.valid()) {
      sent =
          std::max<ssize_t>(0, ::send(to.inner.get(), from.held.data(), most, MSG_DONTWAIT | MSG_NOSIGNAL));
      from.held.erase(from.held.begin(), from.held.begin() + sent);
    } else if (from.held.empty() && from.ended && !from.end_passed && to.inner.valid()) {
      from.end_passed = true;
      ::shutdown(to.inner.get(), SHUT_WR);
      sent = -1;
    }
    return Napi::Number::New(info.Env(), static_cast<double>(sent));
  }

  /// waiting(from): bytes that could be forwarded, -1 where only the end could be.
  Napi::Value Waiting(const Napi::CallbackInfo& info) {
    End_& from = ends_[Number(info[0])];
    Fill(from);
    const bool end = from.held.empty() && from.ended && !from.end_passed;
    return Napi::Number::New(info.Env(), end ? -1 : static_cast<double>(from.held.size()));
  }

  /// flip(from, bit): turns a bit of what waits over.
  void Flip(const Napi::CallbackInfo& info) {
    std::vector<std::byte>& held = ends_[Number(info[0])].held;
    const uint64_t bit = Time(info[1]);
    if (bit / 8 < held.size()) held[bit / 8] ^= std::byte{1} << (bit % 8);
  }

  /// What the shard's end has answered to the hello, as a Status; it goes no further.
  Napi::Value TakeWelcome(const Napi::CallbackInfo& info) {
    proto::LaneWelcome welcome{};
    const ssize_t read = ::recv(ends_[1].inner.get(), &welcome, sizeof(welcome), MSG_DONTWAIT);
    if (read != sizeof(welcome)) throw Napi::Error::New(info.Env(), "no welcome has come");
    return Napi::Number::New(info.Env(), welcome.status);
  }

  /// Both ends see the connection end at once, and what was on its way is lost.
  void End(const Napi::CallbackInfo&) {
    for (End_& end : ends_) {
      end.outer.Reset();
      end.inner.Reset();
      end.held.clear();
      end.ended = true;
    }
  }

  End_ ends_[2];
};

// ---- Shard
// ------------------------------------------------------------------------------------------------------

class SimShard : public Napi::ObjectWrap<SimShard> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "SimShard",
                       {
                           InstanceMethod<&SimShard::OpenRing>("openRing"),
                           InstanceMethod<&SimShard::OpenStream>("openStream"),
                           InstanceMethod<&SimShard::AddLane>("addLane"),
                           InstanceMethod<&SimShard::AddGrant>("addGrant"),
                           InstanceMethod<&SimShard::Pump>("pump"),
                           InstanceMethod<&SimShard::HasWork>("hasWork"),
                           InstanceMethod<&SimShard::NextDeadline>("nextDeadlineNs"),
                           InstanceMethod<&SimShard::CloseSession>("closeSession"),
                           InstanceMethod<&SimShard::FreeBytes>("freeBytes"),
                           InstanceMethod<&SimShard::Alarms>("tenantAlarms"),
                           InstanceMethod<&SimShard::Unfinished>("unfinished"),
                           InstanceMethod<&SimShard::Crash>("crash"),
                       });
  }

  explicit SimShard(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SimShard>(info) {
    allocator_ = Must(info.Env(), ColumnAllocator::Create(Time(info[0]), HugePages::kNever));
    epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  }

  ~SimShard() override { CloseAll(); }

  RingSession* RingOf(uint64_t session) {
    const auto found = sessions_.find(session);
    return found == sessions_.end() ? nullptr : found->second.ring;
  }

 private:
  struct Session {
    std::unique_ptr<EngineSession> session;
    RingSession* ring = nullptr;
    StreamSession* stream = nullptr;
    std::vector<std::unique_ptr<GrantMemory>> grants;
  };

  Session& Of(const Napi::CallbackInfo& info) {
    const auto found = sessions_.find(Time(info[0]));
    if (found == sessions_.end()) {
      throw ToJsError(info.Env(), {proto::Status::kNotAllowed, "the session is not attached to this shard"});
    }
    return found->second;
  }

  void Enter(const Napi::CallbackInfo& info, Session session) {
    session.session->WatchWith(epoll_.get());
    if (!sessions_.emplace(Time(info[0]), std::move(session)).second) {
      throw ToJsError(info.Env(),
                      {proto::Status::kNotAllowed, "the session is attached to this shard already"});
    }
  }

  void OpenRing(const Napi::CallbackInfo& info) {
    auto session = Must(info.Env(), RingSession::Create(Time(info[0]), Number(info[1]), &tally_));
    RingSession* ring = session.get();
    Enter(info, {std::move(session), ring, nullptr, {}});
  }

  void OpenStream(const Napi::CallbackInfo& info) {
    auto session =
        std::make_unique<StreamSession>(Time(info[0]), Number(info[1]), info[2].ToBoolean(), &tally_);
    StreamSession* stream = session.get();
    Enter(info, {std::move(session), nullptr, stream, {}});
  }

  /// addLane(session, kind, stream, wire): the session takes the shard's end. Its welcome is sent over the
  /// wire.
  void AddLane(const Napi::CallbackInfo& info) {
    Session& session = Of(info);
    UniqueFd fd = Wire::Unwrap(info[3].As<Napi::Object>())->TakeEnd(1);
    if (session.stream == nullptr) {
      throw ToJsError(info.Env(), {proto::Status::kNotAllowed, "the session takes no lanes"});
    }
    Must(info.Env(), session.stream->AddLane(static_cast<proto::LaneKind>(Number(info[1])), Number(info[2]),
                                             std::move(fd)));
  }

  /// addGrant(session, grant, slots, pieceBytes) -> {slotBytes, bytes, memory: the slots as the client maps
  /// them}
  Napi::Value AddGrant(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    Session& session = Of(info);
    const GrantGeometry geometry = Must(env, GrantGeometry::For(Time(info[2]), Time(info[3])));
    auto memory = std::make_unique<GrantMemory>(Must(env, allocator_->Allocate(geometry)));
    auto mapping = std::make_shared<Mapping>(
        Must(env, Mapping::Map(memory->object.fd(), memory->object.bytes(), Access::kReadWrite)));
    if (session.stream != nullptr) {
      memory->mapping =
          Must(env, Mapping::Map(memory->object.fd(), memory->object.bytes(), Access::kReadWrite));
    }
    Outcome added = session.session->AddGrant(Number(info[1]), memory.get());
    if (!added.ok()) {
      allocator_->Free(std::move(*memory));
      throw ToJsError(env, added.error());
    }
    session.grants.push_back(std::move(memory));
    Napi::Object out = Napi::Object::New(env);
    out.Set("slotBytes", Napi::Number::New(env, static_cast<double>(geometry.slot_bytes)));
    out.Set("bytes", Napi::Number::New(env, static_cast<double>(allocator_->Footprint(geometry))));
    auto* keep = new std::shared_ptr<Mapping>(mapping);
    out.Set("memory", Napi::ArrayBuffer::New(
                          env, mapping->data(), geometry.bytes(),
                          [](Napi::Env, void*, std::shared_ptr<Mapping>* held) { delete held; }, keep));
    return out;
  }

  /// pump(session, nowNs) -> 'ring' | 'protocol' | 'laneEnded' where the session has failed, else whether it
  /// worked
  Napi::Value Pump(const Napi::CallbackInfo& info) {
    epoll_event events[64];
    const int count = ::epoll_wait(epoll_.get(), events, 64, 0);
    for (int index = 0; index < count; ++index) {
      auto* lane = static_cast<LaneEvents*>(events[index].data.ptr);
      if (lane != nullptr) lane->Note(events[index].events);
    }
    EngineSession& session = *Of(info).session;
    const bool worked = session.Pump(Time(info[1]));
    if (const auto fault = session.ReportFault()) {
      const char* const names[] = {"ring", "protocol", "laneEnded"};
      return Napi::String::New(info.Env(), names[static_cast<size_t>(*fault)]);
    }
    return Napi::Boolean::New(info.Env(), worked);
  }

  Napi::Value HasWork(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), Of(info).session->HasWork());
  }

  Napi::Value Unfinished(const Napi::CallbackInfo& info) {
    bool any = false;
    for (auto& [id, session] : sessions_) any |= session.session->Unfinished();
    return Napi::Boolean::New(info.Env(), any);
  }

  Napi::Value NextDeadline(const Napi::CallbackInfo& info) {
    const uint64_t deadline = Of(info).session->next_deadline_ns();
    return Napi::Number::New(info.Env(), deadline == UINT64_MAX ? INFINITY : static_cast<double>(deadline));
  }

  void CloseAll() {
    while (!sessions_.empty()) Close(sessions_.begin()->first, 0);
  }
  /// The process dies: nothing is scrubbed and nobody is told. What clients have mapped stays with them.
  void Crash(const Napi::CallbackInfo&) {
    for (auto& [id, session] : sessions_) {
      session.session->UnwatchWith(epoll_.get());
      // No client sees the memory of a stream session; this one ends the transfers that its core insists on.
      if (session.stream != nullptr) session.session->Close(0);
    }
    sessions_.clear();
    allocator_.reset();
    epoll_.Reset();
  }

  void CloseSession(const Napi::CallbackInfo& info) { Close(Time(info[0]), Time(info[1])); }

  void Close(uint64_t id, uint64_t now_ns) {
    const auto found = sessions_.find(id);
    if (found == sessions_.end()) return;
    found->second.session->UnwatchWith(epoll_.get());
    found->second.session->Close(now_ns);
    for (auto& memory : found->second.grants) allocator_->Free(std::move(*memory));
    sessions_.erase(found);
  }

  Napi::Value FreeBytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(allocator_->free_bytes()));
  }
  Napi::Value Alarms(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(tally_.tenant_alarms));
  }

  std::unique_ptr<ColumnAllocator> allocator_;
  UniqueFd epoll_;
  ShardTally tally_;
  std::map<uint64_t, Session> sessions_;
};

// ---- The client's ends
// ------------------------------------------------------------------------------------------

/// Arrays that JavaScript and a lane share, as in the product's addon.
class SharedArrays {
 public:
  template <typename T>
  T* Make(Napi::Env env, size_t count, Napi::Reference<Napi::ArrayBuffer>* keep) {
    Napi::ArrayBuffer array = Napi::ArrayBuffer::New(env, count * sizeof(T));
    *keep = Napi::Reference<Napi::ArrayBuffer>::New(array, 1);
    return static_cast<T*>(array.Data());
  }
  Napi::Reference<Napi::ArrayBuffer> descriptors, completions, places;
};

class SimRingLane : public Napi::ObjectWrap<SimRingLane> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "SimRingLane",
                       {
                           InstanceMethod<&SimRingLane::SubmitEvicts>("submitEvicts"),
                           InstanceMethod<&SimRingLane::SubmitCommands>("submitCommands"),
                           InstanceMethod<&SimRingLane::Poll>("poll"),
                           InstanceMethod<&SimRingLane::Arm>("arm"),
                           InstanceMethod<&SimRingLane::Woken>("woken"),
                           InstanceMethod<&SimRingLane::EvictCount>("evictCount"),
                           InstanceMethod<&SimRingLane::CommandCount>("commandCount"),
                           InstanceMethod<&SimRingLane::Revoked>("revoked"),
                           InstanceMethod<&SimRingLane::Close>("close"),
                           InstanceAccessor<&SimRingLane::Descriptors>("descriptors"),
                           InstanceAccessor<&SimRingLane::Completions>("completions"),
                       });
  }

  /// (shard, session, ringEntries)
  explicit SimRingLane(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SimRingLane>(info) {
    const Napi::Env env = info.Env();
    RingSession* session = SimShard::Unwrap(info[0].As<Napi::Object>())->RingOf(Time(info[1]));
    if (session == nullptr) throw Napi::Error::New(env, "no such session");
    SessionEndpoints ends = Must(env, session->Endpoints());
    lane_ = Must(env, ShardLane::Attach(std::move(ends.submit_segment), std::move(ends.status_segment),
                                        std::move(ends.submit_wake), std::move(ends.completion_wake),
                                        Number(info[2])));
    descriptors_ = arrays_.Make<proto::Descriptor>(env, lane_->ring_entries(), &arrays_.descriptors);
    completions_ = arrays_.Make<proto::Completion>(env, lane_->completion_entries(), &arrays_.completions);
  }

 private:
  Napi::Value Submit(const Napi::CallbackInfo& info, ShardLane::Queue queue) {
    const uint32_t count = lane_ ? std::min(Number(info[0]), lane_->ring_entries()) : 0;
    return Napi::Number::New(info.Env(), lane_ ? lane_->Submit(queue, descriptors_, count) : 0);
  }
  Napi::Value SubmitEvicts(const Napi::CallbackInfo& info) { return Submit(info, ShardLane::Queue::kEvict); }
  Napi::Value SubmitCommands(const Napi::CallbackInfo& info) {
    return Submit(info, ShardLane::Queue::kCommand);
  }
  Napi::Value Poll(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), lane_ ? lane_->Poll(completions_, lane_->completion_entries()) : 0);
  }
  Napi::Value Arm(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), !lane_ || lane_->Arm());
  }
  /// Whether the wake has come; takes it.
  Napi::Value Woken(const Napi::CallbackInfo& info) {
    const bool woken = lane_ && Readable(lane_->completion_wake_fd());
    if (woken) lane_->Disarm();
    return Napi::Boolean::New(info.Env(), woken);
  }
  Napi::Value EvictCount(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), lane_ ? static_cast<double>(lane_->evict_count()) : 0);
  }
  Napi::Value CommandCount(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), lane_ ? static_cast<double>(lane_->command_count()) : 0);
  }
  Napi::Value Revoked(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), !lane_ || lane_->revoked());
  }
  void Close(const Napi::CallbackInfo&) { lane_.reset(); }
  Napi::Value Descriptors(const Napi::CallbackInfo&) { return arrays_.descriptors.Value(); }
  Napi::Value Completions(const Napi::CallbackInfo&) { return arrays_.completions.Value(); }

  std::unique_ptr<ShardLane> lane_;
  SharedArrays arrays_;
  proto::Descriptor* descriptors_ = nullptr;
  proto::Completion* completions_ = nullptr;
};

/// Lanes over wires: (hio, order or null, evict wires, refill wires) are the client's ends.
StreamLane::Connections ConnectionsOf(const Napi::CallbackInfo& info) {
  const auto end_of = [](const Napi::Value& wire) {
    return Wire::Unwrap(wire.As<Napi::Object>())->TakeEnd(0);
  };
  const auto ends_of = [&](const Napi::Value& value) {
    std::vector<UniqueFd> ends;
    const auto wires = value.As<Napi::Array>();
    for (uint32_t index = 0; index < wires.Length(); ++index) ends.push_back(end_of(wires.Get(index)));
    return ends;
  };
  StreamLane::Connections connections;
  connections.hio = end_of(info[0]);
  if (!info[1].IsNull()) connections.order = end_of(info[1]);
  connections.evict = ends_of(info[2]);
  connections.refill = ends_of(info[3]);
  return connections;
}

class SimStreamLane : public Napi::ObjectWrap<SimStreamLane> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "SimStreamLane",
                       {
                           InstanceMethod<&SimStreamLane::Submit>("submit"),
                           InstanceMethod<&SimStreamLane::Poll>("poll"),
                           InstanceMethod<&SimStreamLane::Arm>("arm"),
                           InstanceMethod<&SimStreamLane::Woken>("woken"),
                           InstanceMethod<&SimStreamLane::Turn>("turn"),
                           InstanceMethod<&SimStreamLane::EvictCount>("evictCount"),
                           InstanceMethod<&SimStreamLane::CommandCount>("commandCount"),
                           InstanceMethod<&SimStreamLane::Broken>("broken"),
                           InstanceMethod<&SimStreamLane::PayloadBytes>("payloadBytes"),
                           InstanceMethod<&SimStreamLane::RegisterMemory>("registerMemory"),
                           InstanceMethod<&SimStreamLane::Close>("close"),
                           InstanceAccessor<&SimStreamLane::Descriptors>("descriptors"),
                           InstanceAccessor<&SimStreamLane::Completions>("completions"),
                           InstanceAccessor<&SimStreamLane::Places>("places"),
                       });
  }

  /// (hio, order or null, evict wires, refill wires, window, checksums)
  explicit SimStreamLane(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SimStreamLane>(info) {
    const uint32_t window = Number(info[4]);
    lane_ = Must(info.Env(), StreamLane::Create(ConnectionsOf(info), window, info[5].ToBoolean()));
    descriptors_ = arrays_.Make<proto::Descriptor>(info.Env(), window, &arrays_.descriptors);
    completions_ = arrays_.Make<proto::Completion>(info.Env(), 2 * window, &arrays_.completions);
    places_ = arrays_.Make<double>(info.Env(), 2 * window, &arrays_.places);
    orders_.resize(window);
  }

 private:
  Napi::Value Submit(const Napi::CallbackInfo& info) {
    if (!lane_) return Napi::Number::New(info.Env(), 0);
    const uint32_t count = std::min(Number(info[0]), lane_->window());
    for (uint32_t index = 0; index < count; ++index) {
      StreamOrder& order = orders_[index];
      order = {};
      order.descriptor = descriptors_[index];
      if (order.descriptor.opcode == static_cast<uint16_t>(proto::Opcode::kDelete)) continue;
      const auto offset = static_cast<uint64_t>(places_[2 * index + 1]);
      if (lane_->has_carrier()) {
        order.place = static_cast<uint32_t>(offset);
      } else {
        KVSS_CHECK(offset + order.descriptor.piece_bytes <= memory_.Value().ByteLength());
        order.memory = static_cast<std::byte*>(memory_.Value().Data()) + offset;
      }
    }
    return Napi::Number::New(info.Env(), lane_->Submit(orders_.data(), count));
  }
  Napi::Value Poll(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), lane_ ? lane_->Poll(completions_, 2 * lane_->window()) : 0);
  }
  Napi::Value Arm(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), !lane_ || lane_->Arm());
  }
  Napi::Value Woken(const Napi::CallbackInfo& info) {
    eventfd_t ignored;
    const bool woken = lane_ && ::eventfd_read(lane_->completion_wake_fd(), &ignored) == 0;
    if (woken) lane_->Disarm();
    return Napi::Boolean::New(info.Env(), woken);
  }
  /// One turn of what is a thread in the product; answers whether it found something to do.
  Napi::Value Turn(const Napi::CallbackInfo& info) {
    if (!lane_) return Napi::Boolean::New(info.Env(), false);
    lane_->Wait(0);
    return Napi::Boolean::New(info.Env(), lane_->Turn());
  }
  Napi::Value EvictCount(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), lane_ ? static_cast<double>(lane_->evict_count()) : 0);
  }
  Napi::Value CommandCount(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), lane_ ? static_cast<double>(lane_->command_count()) : 0);
  }
  Napi::Value Broken(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), !lane_ || lane_->broken());
  }
  Napi::Value PayloadBytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), lane_ ? static_cast<double>(lane_->payload_bytes()) : 0);
  }
  Napi::Value RegisterMemory(const Napi::CallbackInfo& info) {
    memory_ = Napi::Reference<Napi::ArrayBuffer>::New(info[0].As<Napi::ArrayBuffer>(), 1);
    return Napi::Number::New(info.Env(), 0);
  }
  void Close(const Napi::CallbackInfo&) { lane_.reset(); }
  Napi::Value Descriptors(const Napi::CallbackInfo&) { return arrays_.descriptors.Value(); }
  Napi::Value Completions(const Napi::CallbackInfo&) { return arrays_.completions.Value(); }
  Napi::Value Places(const Napi::CallbackInfo&) { return arrays_.places.Value(); }

  std::unique_ptr<StreamLane> lane_;
  SharedArrays arrays_;
  Napi::Reference<Napi::ArrayBuffer> memory_;
  proto::Descriptor* descriptors_ = nullptr;
  proto::Completion* completions_ = nullptr;
  double* places_ = nullptr;
  std::vector<StreamOrder> orders_;
};

/// The carrier's end, with memory of JavaScript.
class SimCarrierLane : public Napi::ObjectWrap<SimCarrierLane> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "SimCarrierLane",
                       {
                           InstanceMethod<&SimCarrierLane::Turn>("turn"),
                           InstanceMethod<&SimCarrierLane::Broken>("broken"),
                           InstanceMethod<&SimCarrierLane::Close>("close"),
                       });
  }

  /// (order wire, of which it takes the shard's end; evict wires; refill wires; window, checksums, memory,
  /// places, strideBytes, pieceBytes)
  explicit SimCarrierLane(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SimCarrierLane>(info) {
    CarrierLane::Connections connections;
    connections.order = Wire::Unwrap(info[0].As<Napi::Object>())->TakeEnd(1);
    const std::pair<size_t, std::vector<UniqueFd>*> kinds[] = {{1, &connections.evict},
                                                               {2, &connections.refill}};
    for (const auto& [argument, ends] : kinds) {
      const auto wires = info[argument].As<Napi::Array>();
      for (uint32_t index = 0; index < wires.Length(); ++index) {
        const Napi::Value wire = wires.Get(index);
        ends->push_back(Wire::Unwrap(wire.As<Napi::Object>())->TakeEnd(0));
      }
    }
    const auto bytes = info[5].As<Napi::ArrayBuffer>();
    memory_ = Napi::Reference<Napi::ArrayBuffer>::New(bytes, 1);
    CarrierLane::Memory memory;
    memory.data = static_cast<std::byte*>(memory_.Value().Data());
    memory.places = Number(info[6]);
    memory.stride_bytes = Time(info[7]);
    memory.piece_bytes = Number(info[8]);
    lane_ = Must(info.Env(),
                 CarrierLane::Create(std::move(connections), memory, Number(info[3]), info[4].ToBoolean()));
  }

 private:
  Napi::Value Turn(const Napi::CallbackInfo& info) {
    if (!lane_) return Napi::Boolean::New(info.Env(), false);
    lane_->Wait(0);
    return Napi::Boolean::New(info.Env(), lane_->Turn());
  }
  Napi::Value Broken(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), !lane_ || lane_->broken());
  }
  void Close(const Napi::CallbackInfo&) { lane_.reset(); }

  std::unique_ptr<CarrierLane> lane_;
  Napi::Reference<Napi::ArrayBuffer> memory_;
};

Napi::Object Initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("Wire", Wire::Define(env));
  exports.Set("SimShard", SimShard::Define(env));
  exports.Set("SimRingLane", SimRingLane::Define(env));
  exports.Set("SimStreamLane", SimStreamLane::Define(env));
  exports.Set("SimCarrierLane", SimCarrierLane::Define(env));
  return exports;
}

NODE_API_MODULE(kvss_simulation, Initialise)

}  // namespace
}  // namespace kvss::testing
