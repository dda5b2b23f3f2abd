#include "addon/environment.h"

#include <algorithm>

namespace kvss::addon {

Napi::Error ToJsError(Napi::Env env, const Error& error) {
  Napi::Error out = Napi::Error::New(env, error.message);
  out.Set("status", Napi::Number::New(env, static_cast<double>(error.status)));
  return out;
}

void DescriptorBundle::Define(Napi::Env env) {
  Napi::Function constructor = DefineClass(env, "DescriptorBundle",
                                           {InstanceMethod<&DescriptorBundle::Close>("close"),
                                            InstanceAccessor<&DescriptorBundle::Count>("count")});
  Environment::Of(env).bundle_class = Napi::Persistent(constructor);
}

Napi::Value DescriptorBundle::Wrap(Napi::Env env, std::vector<UniqueFd> descriptors) {
  Napi::Object object = Environment::Of(env).bundle_class.New({});
  Unwrap(object)->descriptors_ = std::move(descriptors);
  return object;
}

DescriptorBundle* DescriptorBundle::Of(const Napi::Value& value) {
  if (!value.IsObject() ||
      !value.As<Napi::Object>().InstanceOf(Environment::Of(value.Env()).bundle_class.Value())) {
    throw Napi::TypeError::New(value.Env(), "expected a descriptor bundle");
  }
  return Unwrap(value.As<Napi::Object>());
}

std::vector<UniqueFd> DescriptorBundle::TakeAll(const Napi::Value& value) {
  return std::exchange(Of(value)->descriptors_, {});
}

void DescriptorBundle::Split(const Napi::Value& value, size_t count, std::vector<UniqueFd>* behind) {
  std::vector<UniqueFd>& descriptors = Of(value)->descriptors_;
  for (size_t index = count; index < descriptors.size(); ++index)
    behind->push_back(std::move(descriptors[index]));
  descriptors.resize(std::min(count, descriptors.size()));
}

std::vector<int> DescriptorBundle::Peek(const Napi::Value& value) {
  std::vector<int> numbers;
  for (const UniqueFd& fd : Of(value)->descriptors_) numbers.push_back(fd.get());
  return numbers;
}

std::vector<UniqueFd> DescriptorBundle::Take(const Napi::Value& value, size_t expected) {
  std::vector<UniqueFd> descriptors = TakeAll(value);
  if (descriptors.size() != expected) {
    throw ToJsError(value.Env(), Error{proto::Status::kBadFrame, "expected " + std::to_string(expected) +
                                                                     " descriptors, got " +
                                                                     std::to_string(descriptors.size())});
  }
  return descriptors;
}

Napi::Value DescriptorBundle::Count(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(descriptors_.size()));
}

void DescriptorBundle::Close(const Napi::CallbackInfo&) { descriptors_.clear(); }

}  // namespace kvss::addon
