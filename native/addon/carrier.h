#pragma once

#include <napi.h>

#include <memory>

#include "link/carrier_lane.h"

namespace kvss::addon {

class Reactor;

/// The carrier's end of one shard, for JavaScript.
class CarrierLaneWrap : public Napi::ObjectWrap<CarrierLaneWrap> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit CarrierLaneWrap(const Napi::CallbackInfo& info);

 private:
  Napi::Value BytesSent(const Napi::CallbackInfo& info);
  Napi::Value BytesReceived(const Napi::CallbackInfo& info);
  void CloseFromJs(const Napi::CallbackInfo& info);
  void Ended(Napi::Env env);
  void Close();

  std::unique_ptr<CarrierLane> lane_;
  std::shared_ptr<Reactor> reactor_;
  uint64_t watch_ = 0;
  uint64_t bytes_sent_ = 0;  ///< when it was closed
  uint64_t bytes_received_ = 0;
  Napi::Reference<Napi::ArrayBuffer> memory_;
  Napi::FunctionReference on_end_;
};

}  // namespace kvss::addon
