// Everything that the addon exports. The typed contract is src/binding/native.ts.

#include <napi.h>

#include "addon/carrier.h"
#include "addon/control.h"
#include "addon/copy.h"
#include "addon/environment.h"
#include "addon/lane.h"
#include "addon/shard.h"
#include "addon/stream.h"
#include "base/step.h"

namespace kvss::addon {
namespace {

Napi::Value JoinBundles(const Napi::CallbackInfo& info) {
  std::vector<UniqueFd> all;
  for (size_t index = 0; index < info.Length(); ++index) {
    for (UniqueFd& fd : DescriptorBundle::TakeAll(info[index])) all.push_back(std::move(fd));
  }
  return DescriptorBundle::Wrap(info.Env(), std::move(all));
}

/// Takes what is behind the first `count` descriptors out of a bundle, into one of its own.
Napi::Value SplitBundle(const Napi::CallbackInfo& info) {
  const uint32_t count = info[1].As<Napi::Number>().Uint32Value();
  std::vector<UniqueFd> behind;
  DescriptorBundle::Split(info[0], count, &behind);
  return DescriptorBundle::Wrap(info.Env(), std::move(behind));
}

#ifdef KVSS_STEPS
/// Steps of JavaScript, counted together with the others.
void ReachStepFromJs(const Napi::CallbackInfo& info) {
  ReachStep(info[0].As<Napi::String>().Utf8Value().c_str());
}
#endif

Napi::Object Initialise(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment());
  DescriptorBundle::Define(env);
  exports.Set("protocolVersion", Napi::Number::New(env, proto::kProtocolVersion));
  exports.Set("Shard", Shard::Define(env));
  exports.Set("Lane", Lane::Define(env));
  exports.Set("ControlListener", ControlListenerWrap::Define(env));
  exports.Set("ControlChannel", ControlChannel::Define(env));
  exports.Set("StreamListener", StreamListenerWrap::Define(env));
  exports.Set("StreamLane", StreamLaneWrap::Define(env));
  exports.Set("CarrierLane", CarrierLaneWrap::Define(env));
  exports.Set("connectLane", Napi::Function::New<ConnectLaneFromJs>(env, "connectLane"));
  exports.Set("answerLane", Napi::Function::New<AnswerLaneFromJs>(env, "answerLane"));
  exports.Set("mapGrant", Napi::Function::New<MapGrant>(env, "mapGrant"));
  exports.Set("mapCounters", Napi::Function::New<MapCounters>(env, "mapCounters"));
  napi_value copy_piece = nullptr;
  if (napi_create_function(env, "copyPiece", NAPI_AUTO_LENGTH, CopyPieceFromJs, nullptr, &copy_piece) !=
      napi_ok) {
    throw Napi::Error::New(env);
  }
  exports.Set("copyPiece", copy_piece);
  exports.Set("joinBundles", Napi::Function::New<JoinBundles>(env, "joinBundles"));
  exports.Set("splitBundle", Napi::Function::New<SplitBundle>(env, "splitBundle"));
#ifdef KVSS_STEPS
  exports.Set("reachStep", Napi::Function::New<ReachStepFromJs>(env, "reachStep"));
#endif
  return exports;
}

NODE_API_MODULE(kvss, Initialise)

}  // namespace
}  // namespace kvss::addon
