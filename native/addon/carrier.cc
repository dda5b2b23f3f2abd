#include "addon/carrier.h"

#include "addon/environment.h"
#include "addon/reactor.h"

namespace kvss::addon {

Napi::Function CarrierLaneWrap::Define(Napi::Env env) {
  return DefineClass(env, "CarrierLane",
                     {
                         InstanceMethod<&CarrierLaneWrap::CloseFromJs>("close"),
                         InstanceMethod<&CarrierLaneWrap::BytesSent>("bytesSent"),
                         InstanceMethod<&CarrierLaneWrap::BytesReceived>("bytesReceived"),
                     });
}

// (bundle, evict lanes, window, checksums, memory, places, strideBytes, pieceBytes, onEnd): the bundle holds
// the order lane, then the evict lanes, then as many refill lanes.
CarrierLaneWrap::CarrierLaneWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CarrierLaneWrap>(info) {
  const Napi::Env env = info.Env();
  const uint32_t lanes = info[1].As<Napi::Number>().Uint32Value();
  std::vector<UniqueFd> fds = DescriptorBundle::Take(info[0], 1 + 2 * lanes);
  CarrierLane::Connections connections;
  connections.order = std::move(fds[0]);
  for (size_t index = 1; index < fds.size(); ++index) {
    (index <= lanes ? connections.evict : connections.refill).push_back(std::move(fds[index]));
  }
  Napi::ArrayBuffer bytes = info[4].As<Napi::ArrayBuffer>();
  CarrierLane::Memory memory;
  memory.data = static_cast<std::byte*>(bytes.Data());
  memory.places = info[5].As<Napi::Number>().Uint32Value();
  memory.stride_bytes = static_cast<uint64_t>(info[6].As<Napi::Number>().Int64Value());
  memory.piece_bytes = info[7].As<Napi::Number>().Uint32Value();
  // Our own TypeScript says where; a wrong place would be a wild write.
  KVSS_CHECK(memory.piece_bytes <= memory.stride_bytes &&
             memory.places * memory.stride_bytes <= bytes.ByteLength());
  auto lane = CarrierLane::Start(std::move(connections), memory, info[2].As<Napi::Number>().Uint32Value(),
                                 info[3].ToBoolean());
  if (!lane.ok()) throw ToJsError(env, lane.error());
  lane_ = std::move(lane.value());
  memory_ = Napi::Reference<Napi::ArrayBuffer>::New(bytes, 1);
  on_end_ = Napi::Persistent(info[8].As<Napi::Function>());
  reactor_ = Reactor::For(env);
  watch_ = reactor_->MustWatch(lane_->end_fd(), [this](Napi::Env js) { Ended(js); });
  reactor_->Unref(watch_);
  Ref();
}

void CarrierLaneWrap::Ended(Napi::Env env) {
  if (!lane_) return;
  Napi::HandleScope scope(env);
  Napi::Function on_end = on_end_.Value();
  Close();
  on_end.MakeCallback(Value(), {});
}

Napi::Value CarrierLaneWrap::BytesSent(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(lane_ ? lane_->bytes_sent() : bytes_sent_));
}

Napi::Value CarrierLaneWrap::BytesReceived(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(),
                           static_cast<double>(lane_ ? lane_->bytes_received() : bytes_received_));
}

void CarrierLaneWrap::CloseFromJs(const Napi::CallbackInfo&) { Close(); }

void CarrierLaneWrap::Close() {
  if (!lane_) return;
  reactor_->Unwatch(watch_);
  bytes_sent_ = lane_->bytes_sent();
  bytes_received_ = lane_->bytes_received();
  lane_.reset();
  memory_.Reset();
  on_end_.Reset();
  Unref();
}

}  // namespace kvss::addon
