// The addon of the bench suite: what KVSS is compared with. The typed contract is src/bench/native.ts. Its
// calls block the thread that makes them; nothing but the suite uses it.

#include <napi.h>

#include "bench/baselines.h"

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

Napi::Object Initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("runtimeMemory", Napi::Function::New<RuntimeMemory>(env, "runtimeMemory"));
  exports.Set("copyPieces", Napi::Function::New<CopyPieces>(env, "copyPieces"));
  exports.Set("socketLoop", Napi::Function::New<SocketLoop>(env, "socketLoop"));
  exports.Set("ringLoop", Napi::Function::New<RingLoop>(env, "ringLoop"));
  return exports;
}

NODE_API_MODULE(kvss_bench, Initialise)

}  // namespace
}  // namespace kvss::bench
