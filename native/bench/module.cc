// The addon of the bench suite: what KVSS is compared with. The typed contract is src/bench/native.ts. Its
// calls block the thread that makes them; nothing but the suite uses it.

#include <napi.h>

#include "bench/baselines.h"
#include "bench/peer_client.h"

namespace kvss::bench {
namespace {

template <typename Value>
Value OrThrow(Napi::Env env, Result<Value> result) {
  if (!result.ok()) throw Napi::Error::New(env, result.error().message);
  return std::move(result.value());
}

Napi::Value Seconds(Napi::Env env, uint64_t nanoseconds) {
  return Napi::Number::New(env, static_cast<double>(nanoseconds) / 1e9);
}

/// runtimeMemory(bytes) -> ArrayBuffer
Napi::Value RuntimeMemory(const Napi::CallbackInfo& info) {
  const auto bytes = static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value());
  auto* keep = new std::shared_ptr<std::byte>(
      OrThrow<std::shared_ptr<std::byte>>(info.Env(), MakeRuntimeMemory(bytes)));
  return Napi::ArrayBuffer::New(
      info.Env(), keep->get(), bytes, [](Napi::Env, void*, std::shared_ptr<std::byte>* held) { delete held; },
      keep);
}

/// copyPieces(source: ArrayBuffer, pieceBytes, pieces) -> seconds
Napi::Value CopyPieces(const Napi::CallbackInfo& info) {
  constexpr uint64_t kTargetBytes = 512u << 20;
  static CopyLoop loop = OrThrow(info.Env(), CopyLoop::Create(kTargetBytes));
  auto source = info[0].As<Napi::ArrayBuffer>();
  const uint32_t piece_bytes = info[1].As<Napi::Number>().Uint32Value();
  const auto pieces = static_cast<uint64_t>(info[2].As<Napi::Number>().Int64Value());
  return Seconds(info.Env(), loop.Run({static_cast<const std::byte*>(source.Data()), source.ByteLength()},
                                      piece_bytes, pieces));
}

/// socketLoop(unix, streams, window, pieceBytes, pieces) -> seconds
Napi::Value SocketLoop(const Napi::CallbackInfo& info) {
  SocketPlan plan;
  plan.unix_sockets = info[0].As<Napi::Boolean>().Value();
  plan.streams = info[1].As<Napi::Number>().Uint32Value();
  plan.window = info[2].As<Napi::Number>().Uint32Value();
  plan.piece_bytes = info[3].As<Napi::Number>().Uint32Value();
  plan.pieces = static_cast<uint64_t>(info[4].As<Napi::Number>().Int64Value());
  return Seconds(info.Env(), OrThrow(info.Env(), RunSocketLoop(plan)));
}

/// ringLoop(roundTripNs: Float64Array): makes as many round trips as there is room for
Napi::Value RingLoop(const Napi::CallbackInfo& info) {
  auto times = info[0].As<Napi::Float64Array>();
  RunRingLoop(static_cast<uint32_t>(times.ElementLength()), times.Data());
  return info.Env().Undefined();
}

/// Talks to a peer on a thread of its own, so that whoever waits for it can still be interrupted.
class PeerTransfer : public Napi::AsyncWorker {
 public:
  PeerTransfer(Napi::Env env, PeerPlan plan, Napi::ArrayBuffer memory)
      : Napi::AsyncWorker(env),
        plan_(std::move(plan)),
        memory_(Napi::Persistent(memory)),
        deferred_(Napi::Promise::Deferred::New(env)) {}

  Napi::Promise promise() const { return deferred_.Promise(); }

 private:
  void Execute() override {
    auto result = RunPeerTransfer(plan_);
    if (result.ok()) {
      nanoseconds_ = result.value();
    } else {
      SetError(result.error().message);
    }
  }
  void OnOK() override { deferred_.Resolve(Seconds(Env(), nanoseconds_)); }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

  PeerPlan plan_;
  Napi::Reference<Napi::ArrayBuffer> memory_;
  Napi::Promise::Deferred deferred_;
  uint64_t nanoseconds_ = 0;
};

/// peerTransfer(plan, memory: ArrayBuffer) -> Promise<seconds>
Napi::Value StartPeerTransfer(const Napi::CallbackInfo& info) {
  auto given = info[0].As<Napi::Object>();
  const auto number = [&](const char* name) { return given.Get(name).As<Napi::Number>().Int64Value(); };
  const auto text = [&](const char* name) { return given.Get(name).As<Napi::String>().Utf8Value(); };
  auto memory = info[1].As<Napi::ArrayBuffer>();
  PeerPlan plan;
  plan.protocol = text("protocol") == "redis" ? PeerProtocol::kRedis : PeerProtocol::kMemcached;
  plan.operation = text("operation") == "set" ? PeerOperation::kSet : PeerOperation::kGet;
  if (given.Get("address").IsNumber()) {
    plan.port = static_cast<uint16_t>(number("address"));
  } else {
    plan.unix_path = text("address");
  }
  plan.connections = static_cast<uint32_t>(number("connections"));
  plan.threads = given.Get("threads").ToBoolean().Value();
  plan.depth = static_cast<uint32_t>(number("depth"));
  plan.piece_bytes = static_cast<uint32_t>(number("pieceBytes"));
  plan.pieces = static_cast<uint64_t>(number("pieces"));
  plan.keys = static_cast<uint64_t>(number("keys"));
  plan.memory = {static_cast<std::byte*>(memory.Data()), memory.ByteLength()};
  plan.patience_ms = static_cast<uint32_t>(number("patienceMs"));
  // Node deletes it once it has run.
  auto* worker = new PeerTransfer(info.Env(), std::move(plan), memory);
  worker->Queue();
  return worker->promise();
}

Napi::Object Initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("runtimeMemory", Napi::Function::New<RuntimeMemory>(env, "runtimeMemory"));
  exports.Set("copyPieces", Napi::Function::New<CopyPieces>(env, "copyPieces"));
  exports.Set("socketLoop", Napi::Function::New<SocketLoop>(env, "socketLoop"));
  exports.Set("ringLoop", Napi::Function::New<RingLoop>(env, "ringLoop"));
  exports.Set("peerTransfer", Napi::Function::New<StartPeerTransfer>(env, "peerTransfer"));
  return exports;
}

NODE_API_MODULE(kvss_bench, Initialise)

}  // namespace
}  // namespace kvss::bench
