#include "addon/stream.h"

#include <sys/timerfd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "addon/reactor.h"

namespace kvss::addon {
namespace {

// Connections that have not said what they are for. More than these, and the one that has waited longest
// goes.
constexpr size_t kMaxArriving = 128;

StreamAddress AddressOf(const Napi::Value& host, const Napi::Value& port) {
  StreamAddress address{host.As<Napi::String>().Utf8Value(), std::nullopt};
  if (port.IsNumber()) address.port = static_cast<uint16_t>(port.As<Napi::Number>().Uint32Value());
  return address;
}

/// A lane that JavaScript waits for. It takes no thread, so any number of daemons may be silent; it lives in
/// the handlers that the reactor holds for it, and goes with them when the environment does.
class LanePromise : public std::enable_shared_from_this<LanePromise> {
 public:
  static Napi::Value Make(Napi::Env env, LaneOpening opening, int timeout_ms) {
    const std::shared_ptr<LanePromise> self(new LanePromise(env, std::move(opening), timeout_ms));
    self->Start(env);
    return self->deferred_.Promise();
  }

 private:
  LanePromise(Napi::Env env, LaneOpening opening, int timeout_ms)
      : deferred_(Napi::Promise::Deferred::New(env)),
        opening_(std::move(opening)),
        timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)),
        timeout_ms_(std::max(timeout_ms, 1)),
        reactor_(Reactor::For(env)) {}

  void Start(Napi::Env env) {
    const itimerspec at{.it_interval = {}, .it_value = {timeout_ms_ / 1000, timeout_ms_ % 1000 * 1'000'000}};
    if (timer_.valid() && ::timerfd_settime(timer_.get(), 0, &at, nullptr) == 0) {
      timer_watch_ =
          reactor_->Watch(timer_.get(), [self = shared_from_this()](Napi::Env js) { self->Late(js); });
    }
    Await(env, LaneOpening::Wait::kWritable);
  }

  void Await(Napi::Env env, LaneOpening::Wait wait) {
    if (watch_ == 0 || wait != waiting_) {
      reactor_->Unwatch(watch_);
      waiting_ = wait;
      watch_ = reactor_->Watch(
          opening_.fd(), [self = shared_from_this()](Napi::Env js) { self->Ready(js); },
          wait == LaneOpening::Wait::kWritable ? EPOLLOUT : EPOLLIN);
    }
    if (watch_ == 0 || timer_watch_ == 0) {
      Reject(env, SystemError(proto::Status::kLimitExceeded, "cannot wait for " + opening_.name()));
    }
  }

  void Ready(Napi::Env env) {
    auto next = opening_.Continue();
    if (!next.ok()) return Reject(env, next.error());
    if (next.value() != LaneOpening::Wait::kNothing) return Await(env, next.value());
    StopWaiting();
    std::vector<UniqueFd> fds;
    fds.push_back(opening_.Take());
    deferred_.Resolve(DescriptorBundle::Wrap(env, std::move(fds)));
  }

  void Late(Napi::Env env) {
    Reject(env, Error{proto::Status::kDeadline,
                      opening_.name() + " did not answer within " + std::to_string(timeout_ms_) + " ms"});
  }

  void Reject(Napi::Env env, const Error& error) {
    StopWaiting();
    deferred_.Reject(ToJsError(env, error).Value());
  }

  /// Of the two handlers the running one is held by the reactor, and this object with it.
  void StopWaiting() {
    reactor_->Unwatch(std::exchange(watch_, 0));
    reactor_->Unwatch(std::exchange(timer_watch_, 0));
  }

  Napi::Promise::Deferred deferred_;
  LaneOpening opening_;
  UniqueFd timer_;
  const int timeout_ms_;
  std::shared_ptr<Reactor> reactor_;
  LaneOpening::Wait waiting_ = LaneOpening::Wait::kWritable;
  uint64_t watch_ = 0;
  uint64_t timer_watch_ = 0;
};

}  // namespace

// ---- StreamListener
// ---------------------------------------------------------------------------------------------

Napi::Function StreamListenerWrap::Define(Napi::Env env) {
  return DefineClass(env, "StreamListener",
                     {InstanceMethod<&StreamListenerWrap::CloseFromJs>("close"),
                      InstanceAccessor<&StreamListenerWrap::Port>("port")});
}

StreamListenerWrap::StreamListenerWrap(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<StreamListenerWrap>(info) {
  auto listener = StreamListener::Listen(AddressOf(info[0], info[1]));
  if (!listener.ok()) throw ToJsError(info.Env(), listener.error());
  listener_.emplace(std::move(listener.value()));
  on_connection_ = Napi::Persistent(info[2].As<Napi::Function>());
  reactor_ = Reactor::For(info.Env());
  watch_ = reactor_->MustWatch(listener_->fd(), [this](Napi::Env env) { Readable(env); });
  Ref();
}

void StreamListenerWrap::Readable(Napi::Env) {
  while (listener_) {
    UniqueFd fd = listener_->Accept();
    if (!fd.valid()) return;
    const uint64_t number = next_number_++;
    Arriving& connection = arriving_[number];
    connection.fd = std::move(fd);
    connection.watch =
        reactor_->Watch(connection.fd.get(), [this, number](Napi::Env env) { ReadHello(env, number); });
    if (connection.watch == 0) {
      Drop(number);
    } else if (arriving_.size() > kMaxArriving) {
      Drop(arriving_.begin()->first);
    }
  }
}

void StreamListenerWrap::ReadHello(Napi::Env env, uint64_t number) {
  Arriving& connection = arriving_.at(number);
  const StreamState state = ReceiveInto(
      connection.fd.get(), std::as_writable_bytes(std::span(&connection.hello, 1)), &connection.have);
  if (state == StreamState::kPartial) return;
  if (state == StreamState::kEnded) return Drop(number);
  Napi::HandleScope scope(env);
  Napi::Uint8Array hello = Napi::Uint8Array::New(env, sizeof(connection.hello));
  std::memcpy(hello.Data(), &connection.hello, sizeof(connection.hello));
  std::vector<UniqueFd> fds;
  reactor_->Unwatch(connection.watch);
  fds.push_back(std::move(connection.fd));
  arriving_.erase(number);
  on_connection_.MakeCallback(Value(), {hello, DescriptorBundle::Wrap(env, std::move(fds))});
}

void StreamListenerWrap::Drop(uint64_t number) {
  reactor_->Unwatch(arriving_.at(number).watch);
  arriving_.erase(number);
}

Napi::Value StreamListenerWrap::Port(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), listener_ ? listener_->port() : 0);
}

void StreamListenerWrap::CloseFromJs(const Napi::CallbackInfo&) {
  if (!listener_) return;
  while (!arriving_.empty()) Drop(arriving_.begin()->first);
  reactor_->Unwatch(watch_);
  listener_.reset();
  on_connection_.Reset();
  Unref();
}

// ---- StreamLane
// -------------------------------------------------------------------------------------------------

Napi::Function StreamLaneWrap::Define(Napi::Env env) {
  return DefineClass(env, "StreamLane",
                     {
                         InstanceMethod<&StreamLaneWrap::Submit>("submit"),
                         InstanceMethod<&StreamLaneWrap::Poll>("poll"),
                         InstanceMethod<&StreamLaneWrap::Arm>("arm"),
                         InstanceMethod<&StreamLaneWrap::EvictCount>("evictCount"),
                         InstanceMethod<&StreamLaneWrap::CommandCount>("commandCount"),
                         InstanceMethod<&StreamLaneWrap::Broken>("broken"),
                         InstanceMethod<&StreamLaneWrap::PayloadBytes>("payloadBytes"),
                         InstanceMethod<&StreamLaneWrap::RegisterMemory>("registerMemory"),
                         InstanceMethod<&StreamLaneWrap::CloseFromJs>("close"),
                         InstanceAccessor<&StreamLaneWrap::Descriptors>("descriptors"),
                         InstanceAccessor<&StreamLaneWrap::Completions>("completions"),
                         InstanceAccessor<&StreamLaneWrap::Places>("places"),
                     });
}

void* StreamLaneWrap::NewArray(Napi::Env env, size_t index, size_t bytes) {
  Napi::ArrayBuffer array = Napi::ArrayBuffer::New(env, bytes);
  arrays_[index] = Napi::Reference<Napi::ArrayBuffer>::New(array, 1);
  return array.Data();
}

// (bundle, evict lanes, refill lanes, window, onWake, checksums): the bundle holds the HIO lane, then the
// evict lanes, then the refill lanes; without any, the order lane of a carrier.
StreamLaneWrap::StreamLaneWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<StreamLaneWrap>(info) {
  const Napi::Env env = info.Env();
  const uint32_t evict_lanes = info[1].As<Napi::Number>().Uint32Value();
  const uint32_t refill_lanes = info[2].As<Napi::Number>().Uint32Value();
  const uint32_t window = info[3].As<Napi::Number>().Uint32Value();
  const bool carried = evict_lanes + refill_lanes == 0;
  std::vector<UniqueFd> fds = DescriptorBundle::Take(info[0], carried ? 2 : 1 + evict_lanes + refill_lanes);
  StreamLane::Connections connections;
  connections.hio = std::move(fds[0]);
  if (carried) connections.order = std::move(fds[1]);
  for (size_t index = 1; !carried && index < fds.size(); ++index) {
    (index <= evict_lanes ? connections.evict : connections.refill).push_back(std::move(fds[index]));
  }
  auto lane = StreamLane::Start(std::move(connections), window, info[5].ToBoolean());
  if (!lane.ok()) throw ToJsError(env, lane.error());
  lane_ = std::move(lane.value());
  descriptors_ = static_cast<proto::Descriptor*>(NewArray(env, 0, window * sizeof(proto::Descriptor)));
  completions_ = static_cast<proto::Completion*>(NewArray(env, 1, 2 * window * sizeof(proto::Completion)));
  places_ = static_cast<Place*>(NewArray(env, 2, window * sizeof(Place)));
  orders_.resize(window);
  on_wake_ = Napi::Persistent(info[4].As<Napi::Function>());
  reactor_ = Reactor::For(env);
  watch_ = reactor_->MustWatch(lane_->completion_wake_fd(), [this](Napi::Env js) { Woken(js); });
  reactor_->Unref(watch_);
  Ref();
}

void StreamLaneWrap::Woken(Napi::Env env) {
  if (!lane_) return;
  lane_->Disarm();
  Napi::HandleScope scope(env);
  on_wake_.MakeCallback(Value(), {});
}

Napi::Value StreamLaneWrap::Submit(const Napi::CallbackInfo& info) {
  if (!lane_) return Napi::Number::New(info.Env(), 0);
  const uint32_t count = std::min(info[0].As<Napi::Number>().Uint32Value(), lane_->window());
  for (uint32_t index = 0; index < count; ++index) {
    const proto::Descriptor& descriptor = descriptors_[index];
    StreamOrder& order = orders_[index];
    order.descriptor = descriptor;
    order.memory = nullptr;
    if (descriptor.opcode == static_cast<uint16_t>(proto::Opcode::kDelete)) continue;
    const auto region = static_cast<uint64_t>(places_[index].region);
    const auto offset = static_cast<uint64_t>(places_[index].offset);
    if (lane_->has_carrier()) {
      order.place = static_cast<uint32_t>(offset);
      continue;
    }
    // Our own TypeScript says where; a wrong place would be a wild write.
    KVSS_CHECK(region < regions_.size() && offset <= regions_[region].bytes &&
               descriptor.piece_bytes <= regions_[region].bytes - offset);
    order.memory = regions_[region].data + offset;
  }
  return Napi::Number::New(info.Env(), lane_->Submit(orders_.data(), count));
}

Napi::Value StreamLaneWrap::Poll(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), lane_ ? lane_->Poll(completions_, 2 * lane_->window()) : 0);
}

Napi::Value StreamLaneWrap::Arm(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !lane_ || lane_->Arm());
}

Napi::Value StreamLaneWrap::EvictCount(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), lane_ ? static_cast<double>(lane_->evict_count()) : 0);
}

Napi::Value StreamLaneWrap::CommandCount(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), lane_ ? static_cast<double>(lane_->command_count()) : 0);
}

Napi::Value StreamLaneWrap::Broken(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !lane_ || lane_->broken());
}

Napi::Value StreamLaneWrap::PayloadBytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(),
                           lane_ ? static_cast<double>(lane_->payload_bytes()) : payload_bytes_);
}

Napi::Value StreamLaneWrap::RegisterMemory(const Napi::CallbackInfo& info) {
  Napi::ArrayBuffer memory = info[0].As<Napi::ArrayBuffer>();
  regions_.push_back({static_cast<std::byte*>(memory.Data()), memory.ByteLength(),
                      Napi::Reference<Napi::ArrayBuffer>::New(memory, 1)});
  return Napi::Number::New(info.Env(), static_cast<double>(regions_.size() - 1));
}

void StreamLaneWrap::CloseFromJs(const Napi::CallbackInfo&) {
  if (!lane_) return;
  reactor_->Unwatch(watch_);
  payload_bytes_ = static_cast<double>(lane_->payload_bytes());
  lane_.reset();
  regions_.clear();
  on_wake_.Reset();
  Unref();
}

Napi::Value ConnectLaneFromJs(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Uint8Array bytes = info[2].As<Napi::Uint8Array>();
  proto::LaneHello hello{};
  if (bytes.ByteLength() != sizeof(hello)) throw Napi::TypeError::New(env, "a lane hello has 64 bytes");
  std::memcpy(&hello, bytes.Data(), sizeof(hello));
  auto opening = LaneOpening::Begin(AddressOf(info[0], info[1]), hello);
  if (!opening.ok()) {
    const auto deferred = Napi::Promise::Deferred::New(env);
    deferred.Reject(ToJsError(env, opening.error()).Value());
    return deferred.Promise();
  }
  return LanePromise::Make(env, std::move(opening.value()), info[3].As<Napi::Number>().Int32Value());
}

void AnswerLaneFromJs(const Napi::CallbackInfo& info) {
  for (const int fd : DescriptorBundle::Peek(info[0])) {
    AnswerLane(fd, static_cast<proto::Status>(info[1].As<Napi::Number>().Uint32Value()));
  }
}

}  // namespace kvss::addon
