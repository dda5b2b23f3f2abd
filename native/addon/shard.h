#pragma once

#include <napi.h>

#include <memory>

#include "addon/environment.h"
#include "engine/shard_host.h"

namespace kvss::addon {

/// A shard of the daemon, for JavaScript. Everything that may take long answers with a promise.
class Shard : public Napi::ObjectWrap<Shard> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit Shard(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Shard>(info) {}

 private:
  static Napi::Value Create(const Napi::CallbackInfo& info);
  Napi::Value OpenSession(const Napi::CallbackInfo& info);
  Napi::Value OpenStreamSession(const Napi::CallbackInfo& info);
  Napi::Value AddLane(const Napi::CallbackInfo& info);
  Napi::Value AddGrant(const Napi::CallbackInfo& info);
  Napi::Value RemoveGrant(const Napi::CallbackInfo& info);
  Napi::Value CloseSession(const Napi::CallbackInfo& info);
  Napi::Value ParkSession(const Napi::CallbackInfo& info);
  Napi::Value ResumeGrant(const Napi::CallbackInfo& info);
  Napi::Value DropParked(const Napi::CallbackInfo& info);
  Napi::Value ReadSlots(const Napi::CallbackInfo& info);
  Napi::Value Drain(const Napi::CallbackInfo& info);
  Napi::Value CountersDescriptor(const Napi::CallbackInfo& info);
  Napi::Value Memory(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<ShardHost> Host(const Napi::CallbackInfo& info) const;

  std::shared_ptr<ShardHost> host_;
};

}  // namespace kvss::addon
