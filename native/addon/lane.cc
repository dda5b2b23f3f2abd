#include "addon/lane.h"

#include <algorithm>

#include "addon/reactor.h"

namespace kvss::addon {
namespace {

// JavaScript cannot index much more than this in one buffer, and wants no fewer, larger ones.
constexpr uint64_t kWindowBytes = 1ull << 31;

using SharedMapping = std::shared_ptr<Mapping>;

/// The mapping is undone when the last buffer over it has been collected, so a view can never dangle.
Napi::ArrayBuffer ViewOf(Napi::Env env, const SharedMapping& mapping, uint64_t offset, uint64_t bytes) {
  auto* keep = new SharedMapping(mapping);
  return Napi::ArrayBuffer::New(
      env, mapping->data() + offset, bytes, [](Napi::Env, void*, SharedMapping* held) { delete held; }, keep);
}

SharedMapping MapOrThrow(Napi::Env env, int fd, uint64_t bytes, Access access) {
  auto mapping = Mapping::Map(fd, bytes, access);
  if (!mapping.ok()) throw ToJsError(env, mapping.error());
  return std::make_shared<Mapping>(std::move(mapping.value()));
}

}  // namespace

Napi::Function Lane::Define(Napi::Env env) {
  return DefineClass(env, "Lane",
                     {
                         InstanceMethod<&Lane::SubmitEvicts>("submitEvicts"),
                         InstanceMethod<&Lane::SubmitCommands>("submitCommands"),
                         InstanceMethod<&Lane::Poll>("poll"),
                         InstanceMethod<&Lane::Arm>("arm"),
                         InstanceMethod<&Lane::EvictCount>("evictCount"),
                         InstanceMethod<&Lane::CommandCount>("commandCount"),
                         InstanceMethod<&Lane::Revoked>("revoked"),
                         InstanceMethod<&Lane::CloseFromJs>("close"),
                         InstanceAccessor<&Lane::Descriptors>("descriptors"),
                         InstanceAccessor<&Lane::Completions>("completions"),
                     });
}

Lane::Lane(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Lane>(info) {
  const Napi::Env env = info.Env();
  std::vector<UniqueFd> fds = DescriptorBundle::Take(info[0], 4);
  const uint32_t ring_entries = info[1].As<Napi::Number>().Uint32Value();
  auto lane = ShardLane::Attach(std::move(fds[0]), std::move(fds[1]), std::move(fds[2]), std::move(fds[3]),
                                ring_entries);
  if (!lane.ok()) throw ToJsError(env, lane.error());
  lane_ = std::move(lane.value());

  Napi::ArrayBuffer descriptors = Napi::ArrayBuffer::New(env, ring_entries * sizeof(proto::Descriptor));
  Napi::ArrayBuffer completions =
      Napi::ArrayBuffer::New(env, lane_->completion_entries() * sizeof(proto::Completion));
  descriptor_memory_ = static_cast<proto::Descriptor*>(descriptors.Data());
  completion_memory_ = static_cast<proto::Completion*>(completions.Data());
  descriptors_ = Napi::Reference<Napi::ArrayBuffer>::New(descriptors, 1);
  completions_ = Napi::Reference<Napi::ArrayBuffer>::New(completions, 1);

  on_wake_ = Napi::Persistent(info[2].As<Napi::Function>());
  reactor_ = Reactor::For(env);
  watch_ = reactor_->MustWatch(lane_->completion_wake_fd(), [this](Napi::Env js) { Woken(js); });
  // The control connection is what keeps a process alive, not each of its lanes.
  reactor_->Unref(watch_);
  Ref();
}

void Lane::Woken(Napi::Env env) {
  if (!lane_) return;
  lane_->Disarm();
  Napi::HandleScope scope(env);
  on_wake_.MakeCallback(Value(), {});
}

Napi::Value Lane::Submit(const Napi::CallbackInfo& info, ShardLane::Queue queue) {
  if (!lane_) return Napi::Number::New(info.Env(), 0);
  const uint32_t count = std::min(info[0].As<Napi::Number>().Uint32Value(), lane_->ring_entries());
  return Napi::Number::New(info.Env(), lane_->Submit(queue, descriptor_memory_, count));
}

Napi::Value Lane::SubmitEvicts(const Napi::CallbackInfo& info) {
  return Submit(info, ShardLane::Queue::kEvict);
}
Napi::Value Lane::SubmitCommands(const Napi::CallbackInfo& info) {
  return Submit(info, ShardLane::Queue::kCommand);
}

Napi::Value Lane::Poll(const Napi::CallbackInfo& info) {
  if (!lane_) return Napi::Number::New(info.Env(), 0);
  return Napi::Number::New(info.Env(), lane_->Poll(completion_memory_, lane_->completion_entries()));
}

Napi::Value Lane::Arm(const Napi::CallbackInfo& info) {
  // Nothing comes from a closed lane, so there is nothing to look for instead of waiting.
  return Napi::Boolean::New(info.Env(), !lane_ || lane_->Arm());
}

Napi::Value Lane::EvictCount(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), lane_ ? static_cast<double>(lane_->evict_count()) : 0);
}

Napi::Value Lane::CommandCount(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), lane_ ? static_cast<double>(lane_->command_count()) : 0);
}

Napi::Value Lane::Revoked(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !lane_ || lane_->revoked());
}

Napi::Value Lane::Descriptors(const Napi::CallbackInfo&) { return descriptors_.Value(); }
Napi::Value Lane::Completions(const Napi::CallbackInfo&) { return completions_.Value(); }

void Lane::CloseFromJs(const Napi::CallbackInfo&) {
  if (!lane_) return;
  reactor_->Unwatch(watch_);
  lane_.reset();
  on_wake_.Reset();
  Unref();
}

Napi::Value MapGrant(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto fds = std::make_shared<std::vector<UniqueFd>>(DescriptorBundle::Take(info[0], 1));
  const auto slots = static_cast<uint64_t>(info[1].As<Napi::Number>().Int64Value());
  const auto slot_bytes = static_cast<uint64_t>(info[2].As<Napi::Number>().Int64Value());
  if (slots == 0 || slots > proto::kMaxSlotsPerGrant || slot_bytes == 0 ||
      slot_bytes > proto::kMaxPieceBytes) {
    throw ToJsError(env, Error{proto::Status::kLimitExceeded, "a grant of impossible size"});
  }
  return AsyncTask<SharedMapping>::Run(
      env,
      [fds, bytes = slots * slot_bytes]() -> Result<SharedMapping> {
        auto mapping = Mapping::Map(fds->front().get(), bytes, Access::kReadWrite);
        if (!mapping.ok()) return mapping.error();
        mapping.value().Populate();
        return std::make_shared<Mapping>(std::move(mapping.value()));
      },
      [slot_bytes](Napi::Env js, SharedMapping mapping) -> Napi::Value {
        const uint64_t window = std::max<uint64_t>(kWindowBytes / slot_bytes, 1) * slot_bytes;
        Napi::Array views = Napi::Array::New(js);
        for (uint64_t offset = 0; offset < mapping->bytes(); offset += window) {
          views.Set(views.Length(), ViewOf(js, mapping, offset, std::min(window, mapping->bytes() - offset)));
        }
        return views;
      });
}

Napi::Value MapCounters(const Napi::CallbackInfo& info) {
  const std::vector<UniqueFd> fds = DescriptorBundle::TakeAll(info[0]);
  Napi::Array views = Napi::Array::New(info.Env());
  for (const UniqueFd& fd : fds) {
    const SharedMapping mapping =
        MapOrThrow(info.Env(), fd.get(), sizeof(proto::CountersSegment), Access::kRead);
    views.Set(views.Length(), ViewOf(info.Env(), mapping, 0, sizeof(proto::CountersSegment)));
  }
  return views;
}

}  // namespace kvss::addon
