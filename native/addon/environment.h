#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace kvss::addon {

class Reactor;

/// What the addon keeps for one JavaScript environment (the main thread or a worker).
struct Environment {
  std::shared_ptr<Reactor> reactor;
  Napi::FunctionReference bundle_class;
  Napi::FunctionReference channel_class;
  Napi::FunctionReference shard_class;

  static Environment& Of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }
};

/// A JavaScript error with the protocol status as `status`; src/binding turns it into a KvssError.
Napi::Error ToJsError(Napi::Env env, const Error& error);

/// File descriptors on their way between JavaScript and native code. They have exactly one owner: sending
/// them or handing them to a constructor takes them out of the bundle, and garbage collection closes what was
/// not taken.
class DescriptorBundle : public Napi::ObjectWrap<DescriptorBundle> {
 public:
  static void Define(Napi::Env env);
  static Napi::Value Wrap(Napi::Env env, std::vector<UniqueFd> descriptors);
  /// Takes the descriptors out of a bundle that JavaScript passed in; throws where it is none or has
  /// `expected` no more.
  static std::vector<UniqueFd> Take(const Napi::Value& value, size_t expected);
  static std::vector<UniqueFd> TakeAll(const Napi::Value& value);
  /// Moves the descriptors behind the first `count`, if there are more, to the end of `behind`.
  static void Split(const Napi::Value& value, size_t count, std::vector<UniqueFd>* behind);
  /// Numbers of the descriptors, which stay in the bundle.
  static std::vector<int> Peek(const Napi::Value& value);

  explicit DescriptorBundle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DescriptorBundle>(info) {}

 private:
  static DescriptorBundle* Of(const Napi::Value& value);
  Napi::Value Count(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);

  std::vector<UniqueFd> descriptors_;
};

/// Runs `work` on a thread of libuv's pool and resolves a promise with `to_js` of its value.
template <typename T>
class AsyncTask final : public Napi::AsyncWorker {
 public:
  using Work = std::function<Result<T>()>;
  using ToJs = std::function<Napi::Value(Napi::Env, T)>;

  static Napi::Value Run(Napi::Env env, Work work, ToJs to_js) {
    auto* task = new AsyncTask(env, std::move(work), std::move(to_js));
    const Napi::Promise promise = task->deferred_.Promise();
    task->Queue();
    return promise;
  }

 private:
  AsyncTask(Napi::Env env, Work work, ToJs to_js)
      : Napi::AsyncWorker(env),
        deferred_(Napi::Promise::Deferred::New(env)),
        work_(std::move(work)),
        to_js_(std::move(to_js)),
        result_(Error{}) {}

  void Execute() override { result_ = work_(); }
  void OnOK() override {
    Napi::HandleScope scope(Env());
    if (!result_.ok()) {
      deferred_.Reject(ToJsError(Env(), result_.error()).Value());
    } else {
      deferred_.Resolve(to_js_(Env(), std::move(result_.value())));
    }
  }

  Napi::Promise::Deferred deferred_;
  Work work_;
  ToJs to_js_;
  Result<T> result_;
};

}  // namespace kvss::addon
