#pragma once

#include <napi.h>

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "addon/environment.h"
#include "link/stream_lane.h"
#include "link/stream_listener.h"

namespace kvss::addon {

class Reactor;

/// Accepts stream connections and reads what each is for, for JavaScript.
class StreamListenerWrap : public Napi::ObjectWrap<StreamListenerWrap> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit StreamListenerWrap(const Napi::CallbackInfo& info);

 private:
  /// A connection whose hello has not come whole.
  struct Arriving {
    UniqueFd fd;
    proto::LaneHello hello{};
    size_t have = 0;
    uint64_t watch = 0;
  };

  void Readable(Napi::Env env);
  void ReadHello(Napi::Env env, uint64_t number);
  void Drop(uint64_t number);
  Napi::Value Port(const Napi::CallbackInfo& info);
  void CloseFromJs(const Napi::CallbackInfo& info);

  std::optional<StreamListener> listener_;
  std::shared_ptr<Reactor> reactor_;
  uint64_t watch_ = 0;
  std::map<uint64_t, Arriving> arriving_;  ///< by number, so the first has waited longest
  uint64_t next_number_ = 1;
  Napi::FunctionReference on_connection_;
};

/// The driver's end of one shard over streams, for JavaScript. Shares its arrays as Lane does; `places` says
/// for each descriptor which registered memory, and where in it, the bytes are; or at which place of the
/// carrier.
class StreamLaneWrap : public Napi::ObjectWrap<StreamLaneWrap> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit StreamLaneWrap(const Napi::CallbackInfo& info);

 private:
  struct Region {
    std::byte* data = nullptr;
    uint64_t bytes = 0;
    Napi::Reference<Napi::ArrayBuffer> keep;
  };

  /// Registered memory and its offset, for one descriptor.
  struct Place {
    double region;
    double offset;
  };

  Napi::Value Submit(const Napi::CallbackInfo& info);
  Napi::Value Poll(const Napi::CallbackInfo& info);
  Napi::Value Arm(const Napi::CallbackInfo& info);
  Napi::Value EvictCount(const Napi::CallbackInfo& info);
  Napi::Value CommandCount(const Napi::CallbackInfo& info);
  Napi::Value Broken(const Napi::CallbackInfo& info);
  Napi::Value PayloadBytes(const Napi::CallbackInfo& info);
  Napi::Value RegisterMemory(const Napi::CallbackInfo& info);
  Napi::Value Descriptors(const Napi::CallbackInfo& info) { return Array(info, 0); }
  Napi::Value Completions(const Napi::CallbackInfo& info) { return Array(info, 1); }
  Napi::Value Places(const Napi::CallbackInfo& info) { return Array(info, 2); }
  void CloseFromJs(const Napi::CallbackInfo& info);

  Napi::Value Array(const Napi::CallbackInfo&, size_t index) { return arrays_[index].Value(); }
  void* NewArray(Napi::Env env, size_t index, size_t bytes);
  void Woken(Napi::Env env);

  std::unique_ptr<StreamLane> lane_;
  std::shared_ptr<Reactor> reactor_;
  uint64_t watch_ = 0;
  Napi::Reference<Napi::ArrayBuffer> arrays_[3];
  proto::Descriptor* descriptors_ = nullptr;
  proto::Completion* completions_ = nullptr;
  Place* places_ = nullptr;
  std::vector<Region> regions_;
  std::vector<StreamOrder> orders_;
  double payload_bytes_ = 0;  ///< when it was closed
  Napi::FunctionReference on_wake_;
};

/// connectLane(numeric host or path, port or null, hello bytes, timeoutMs) -> Promise<bundle of one descriptor>
Napi::Value ConnectLaneFromJs(const Napi::CallbackInfo& info);
/// answerLane(bundle, status): sends the welcome; the bundle keeps the descriptor.
void AnswerLaneFromJs(const Napi::CallbackInfo& info);

}  // namespace kvss::addon
