#include "addon/shard.h"

#include <fcntl.h>

#include <cstring>
#include <span>

namespace kvss::addon {
namespace {

uint64_t Unsigned(const Napi::Value& value) {
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= 0) || number > 9007199254740991.0) {
    throw Napi::RangeError::New(value.Env(), "expected a non-negative integer");
  }
  return static_cast<uint64_t>(number);
}

HioMode ModeOf(const std::string& name) {
  return name == "latency" ? HioMode::kLatency : name == "buffered" ? HioMode::kBuffered : HioMode::kAdaptive;
}

Napi::Value Undefined(Napi::Env env, Nothing) { return env.Undefined(); }

std::vector<UniqueFd> InOrder(SessionEndpoints endpoints) {
  std::vector<UniqueFd> descriptors;
  descriptors.push_back(std::move(endpoints.submit_segment));
  descriptors.push_back(std::move(endpoints.status_segment));
  descriptors.push_back(std::move(endpoints.submit_wake));
  descriptors.push_back(std::move(endpoints.completion_wake));
  return descriptors;
}

Napi::Value GrantToJs(Napi::Env env, GrantedMemory granted) {
  Napi::Object out = Napi::Object::New(env);
  std::vector<UniqueFd> descriptors;
  descriptors.push_back(std::move(granted.descriptor));
  out.Set("descriptors", DescriptorBundle::Wrap(env, std::move(descriptors)));
  out.Set("slotBytes", Napi::Number::New(env, static_cast<double>(granted.geometry.slot_bytes)));
  out.Set("bytes", Napi::Number::New(env, static_cast<double>(granted.object_bytes)));
  out.Set("hugePages", Napi::Boolean::New(env, granted.huge_pages));
  return out;
}

ParkedGrant ParkedOf(const Napi::Value& session, const Napi::Value& grant) {
  return {Unsigned(session), static_cast<uint32_t>(Unsigned(grant))};
}

/// Calls a JavaScript function from the engine thread. Freed with the last engine that may call it.
struct FaultNotifier {
  Napi::ThreadSafeFunction call;
  ~FaultNotifier() { call.Release(); }
};

}  // namespace

Napi::Function Shard::Define(Napi::Env env) {
  Napi::Function constructor =
      DefineClass(env, "Shard",
                  {
                      StaticMethod<&Shard::Create>("create"),
                      InstanceMethod<&Shard::OpenSession>("openSession"),
                      InstanceMethod<&Shard::OpenStreamSession>("openStreamSession"),
                      InstanceMethod<&Shard::AddLane>("addLane"),
                      InstanceMethod<&Shard::AddGrant>("addGrant"),
                      InstanceMethod<&Shard::RemoveGrant>("removeGrant"),
                      InstanceMethod<&Shard::CloseSession>("closeSession"),
                      InstanceMethod<&Shard::ParkSession>("parkSession"),
                      InstanceMethod<&Shard::ResumeGrant>("resumeGrant"),
                      InstanceMethod<&Shard::DropParked>("dropParked"),
                      InstanceMethod<&Shard::ReadSlots>("readSlots"),
                      InstanceMethod<&Shard::Drain>("drain"),
                      InstanceMethod<&Shard::CountersDescriptor>("countersDescriptor"),
                      InstanceMethod<&Shard::Memory>("memory"),
                      InstanceMethod<&Shard::Close>("close"),
                  });
  Environment::Of(env).shard_class = Napi::Persistent(constructor);
  return constructor;
}

Napi::Value Shard::Create(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object in = info[0].As<Napi::Object>();
  ShardOptions options;
  options.budget_bytes = Unsigned(in.Get("budgetBytes"));
  options.huge_pages = in.Get("hugePages").ToBoolean() ? HugePages::kIfAvailable : HugePages::kNever;
  options.engine.shard = static_cast<uint32_t>(Unsigned(in.Get("index")));
  options.engine.mode = ModeOf(in.Get("hioMode").As<Napi::String>());
  options.engine.spin_us = static_cast<uint32_t>(Unsigned(in.Get("spinUs")));

  auto notifier = std::make_shared<FaultNotifier>();
  notifier->call =
      Napi::ThreadSafeFunction::New(env, info[1].As<Napi::Function>(), "kvss-session-fault", 0, 1);
  notifier->call.Unref(env);
  const auto on_fault = [notifier](uint64_t session_id, SessionFault fault) {
    static constexpr const char* kNames[] = {"ring", "protocol", "laneEnded"};
    notifier->call.NonBlockingCall([session_id, fault](Napi::Env js, Napi::Function callback) {
      if (js == nullptr) return;
      callback.Call({Napi::Number::New(js, static_cast<double>(session_id)),
                     Napi::String::New(js, kNames[static_cast<size_t>(fault)])});
    });
  };
  using Host = std::shared_ptr<ShardHost>;
  return AsyncTask<Host>::Run(
      env,
      [options, on_fault]() -> Result<Host> {
        auto host = ShardHost::Create(options, on_fault);
        if (!host.ok()) return host.error();
        return Host(std::move(host.value()));
      },
      [](Napi::Env js, Host host) -> Napi::Value {
        Napi::Object object = Environment::Of(js).shard_class.New({});
        Unwrap(object)->host_ = std::move(host);
        return object;
      });
}

std::shared_ptr<ShardHost> Shard::Host(const Napi::CallbackInfo& info) const {
  if (!host_) throw ToJsError(info.Env(), Error{proto::Status::kDraining, "the shard is closed"});
  return host_;
}

Napi::Value Shard::OpenSession(const Napi::CallbackInfo& info) {
  return AsyncTask<SessionEndpoints>::Run(
      info.Env(),
      [host = Host(info), id = Unsigned(info[0]), entries = Unsigned(info[1])] {
        return host->OpenSession(id, static_cast<uint32_t>(std::min<uint64_t>(entries, UINT32_MAX)));
      },
      [](Napi::Env env, SessionEndpoints endpoints) {
        return DescriptorBundle::Wrap(env, InOrder(std::move(endpoints)));
      });
}

Napi::Value Shard::OpenStreamSession(const Napi::CallbackInfo& info) {
  return AsyncTask<Nothing>::Run(
      info.Env(),
      [host = Host(info), id = Unsigned(info[0]), window = Unsigned(info[1]),
       checksums = info[2].ToBoolean().Value()] {
        return host->OpenStreamSession(id, static_cast<uint32_t>(std::min<uint64_t>(window, UINT32_MAX)),
                                       checksums);
      },
      Undefined);
}

Napi::Value Shard::AddLane(const Napi::CallbackInfo& info) {
  auto fds = std::make_shared<std::vector<UniqueFd>>(DescriptorBundle::Take(info[3], 1));
  return AsyncTask<Nothing>::Run(
      info.Env(),
      [host = Host(info), id = Unsigned(info[0]), kind = static_cast<proto::LaneKind>(Unsigned(info[1])),
       stream = static_cast<uint32_t>(Unsigned(info[2])),
       fds] { return host->AddLane(id, kind, stream, std::move(fds->front())); },
      Undefined);
}

Napi::Value Shard::AddGrant(const Napi::CallbackInfo& info) {
  return AsyncTask<GrantedMemory>::Run(
      info.Env(),
      [host = Host(info), session = Unsigned(info[0]), grant = static_cast<uint32_t>(Unsigned(info[1])),
       slots = Unsigned(info[2]),
       piece_bytes = Unsigned(info[3])] { return host->AddGrant(session, grant, slots, piece_bytes); },
      GrantToJs);
}

Napi::Value Shard::RemoveGrant(const Napi::CallbackInfo& info) {
  return AsyncTask<Nothing>::Run(
      info.Env(),
      [host = Host(info), session = Unsigned(info[0]), grant = static_cast<uint32_t>(Unsigned(info[1]))] {
        return host->RemoveGrant(session, grant);
      },
      Undefined);
}

Napi::Value Shard::CloseSession(const Napi::CallbackInfo& info) {
  return AsyncTask<Nothing>::Run(
      info.Env(),
      [host = Host(info), session = Unsigned(info[0])]() -> Outcome {
        host->CloseSession(session);
        return Nothing{};
      },
      Undefined);
}

Napi::Value Shard::ParkSession(const Napi::CallbackInfo& info) {
  std::vector<uint32_t> grants;
  const Napi::Array wanted = info[1].As<Napi::Array>();
  for (uint32_t index = 0; index < wanted.Length(); ++index) {
    grants.push_back(static_cast<uint32_t>(Unsigned(wanted.Get(index))));
  }
  return AsyncTask<std::vector<uint32_t>>::Run(
      info.Env(),
      [host = Host(info), session = Unsigned(info[0]), grants]() -> Result<std::vector<uint32_t>> {
        return host->ParkSession(session, grants);
      },
      [](Napi::Env env, std::vector<uint32_t> kept) -> Napi::Value {
        Napi::Array out = Napi::Array::New(env, kept.size());
        for (uint32_t index = 0; index < kept.size(); ++index)
          out.Set(index, Napi::Number::New(env, kept[index]));
        return out;
      });
}

Napi::Value Shard::ResumeGrant(const Napi::CallbackInfo& info) {
  return AsyncTask<GrantedMemory>::Run(
      info.Env(),
      [host = Host(info), session = Unsigned(info[0]), grant = static_cast<uint32_t>(Unsigned(info[1])),
       parked = ParkedOf(info[2], info[3])] { return host->ResumeGrant(session, grant, parked); },
      GrantToJs);
}

Napi::Value Shard::DropParked(const Napi::CallbackInfo& info) {
  return AsyncTask<Nothing>::Run(
      info.Env(),
      [host = Host(info), parked = ParkedOf(info[0], info[1])]() -> Outcome {
        host->DropParked(parked);
        return Nothing{};
      },
      Undefined);
}

Napi::Value Shard::ReadSlots(const Napi::CallbackInfo& info) {
  using Entries = std::vector<proto::SlotEntry>;
  return AsyncTask<Entries>::Run(
      info.Env(),
      [host = Host(info), session = Unsigned(info[0]), grant = static_cast<uint32_t>(Unsigned(info[1])),
       from = Unsigned(info[2]),
       count = Unsigned(info[3])] { return host->ReadSlots(session, grant, from, count); },
      [](Napi::Env env, Entries entries) -> Napi::Value {
        const auto bytes = std::as_bytes(std::span(entries));
        Napi::Uint8Array out = Napi::Uint8Array::New(env, bytes.size());
        std::memcpy(out.Data(), bytes.data(), bytes.size());
        return out;
      });
}

Napi::Value Shard::Drain(const Napi::CallbackInfo& info) {
  return AsyncTask<bool>::Run(
      info.Env(),
      [host = Host(info), timeout_ms = Unsigned(info[0])]() -> Result<bool> {
        return host->Drain(timeout_ms * 1'000'000);
      },
      [](Napi::Env env, bool drained) -> Napi::Value { return Napi::Boolean::New(env, drained); });
}

Napi::Value Shard::CountersDescriptor(const Napi::CallbackInfo& info) {
  auto copy = Host(info)->counters().object().Duplicate();
  if (!copy.ok()) throw ToJsError(info.Env(), copy.error());
  std::vector<UniqueFd> descriptors;
  descriptors.push_back(std::move(copy.value()));
  return DescriptorBundle::Wrap(info.Env(), std::move(descriptors));
}

Napi::Value Shard::Memory(const Napi::CallbackInfo& info) {
  const std::shared_ptr<ShardHost> host = Host(info);
  const ColumnAllocator& allocator = host->allocator();
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("budgetBytes", Napi::Number::New(info.Env(), static_cast<double>(allocator.budget_bytes())));
  out.Set("freeBytes", Napi::Number::New(info.Env(), static_cast<double>(allocator.free_bytes())));
  out.Set("hugePages", Napi::Boolean::New(info.Env(), allocator.huge_pages()));
  return out;
}

Napi::Value Shard::Close(const Napi::CallbackInfo& info) {
  // Joining the engine and scrubbing the memory takes a while; other calls in flight keep the host alive
  // meanwhile.
  return AsyncTask<Nothing>::Run(
      info.Env(),
      [host = std::exchange(host_, nullptr)]() mutable -> Outcome {
        host.reset();
        return Nothing{};
      },
      Undefined);
}

}  // namespace kvss::addon
