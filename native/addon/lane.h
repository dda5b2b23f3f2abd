#pragma once

#include <napi.h>

#include <memory>

#include "addon/environment.h"
#include "link/shard_lane.h"

namespace kvss::addon {

class Reactor;

/// The driver's end of one shard, for JavaScript. Descriptors and completions cross the border in two arrays
/// that both sides share: JavaScript fills `descriptors`, calls a submit method with a count, and finds
/// `completions` filled after poll().
class Lane : public Napi::ObjectWrap<Lane> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit Lane(const Napi::CallbackInfo& info);

 private:
  Napi::Value SubmitEvicts(const Napi::CallbackInfo& info);
  Napi::Value SubmitCommands(const Napi::CallbackInfo& info);
  Napi::Value Poll(const Napi::CallbackInfo& info);
  Napi::Value Arm(const Napi::CallbackInfo& info);
  Napi::Value EvictCount(const Napi::CallbackInfo& info);
  Napi::Value CommandCount(const Napi::CallbackInfo& info);
  Napi::Value Revoked(const Napi::CallbackInfo& info);
  Napi::Value Descriptors(const Napi::CallbackInfo& info);
  Napi::Value Completions(const Napi::CallbackInfo& info);
  void CloseFromJs(const Napi::CallbackInfo& info);

  Napi::Value Submit(const Napi::CallbackInfo& info, ShardLane::Queue queue);
  void Woken(Napi::Env env);

  std::unique_ptr<ShardLane> lane_;
  std::shared_ptr<Reactor> reactor_;
  uint64_t watch_ = 0;
  // Their memory does not move and lives as long as these references.
  Napi::Reference<Napi::ArrayBuffer> descriptors_;
  Napi::Reference<Napi::ArrayBuffer> completions_;
  proto::Descriptor* descriptor_memory_ = nullptr;
  proto::Completion* completion_memory_ = nullptr;
  Napi::FunctionReference on_wake_;
};

/// mapGrant(bundle, slots, slotBytes) -> ArrayBuffer[]: maps a grant for reading and writing. Every buffer
/// covers the same whole number of slots, the last one what is left; together they cover the grant once.
Napi::Value MapGrant(const Napi::CallbackInfo& info);

/// mapCounters(bundle) -> ArrayBuffer[]: maps counters segments, one buffer each. They are read-only: writing
/// to one ends the process.
Napi::Value MapCounters(const Napi::CallbackInfo& info);

}  // namespace kvss::addon
