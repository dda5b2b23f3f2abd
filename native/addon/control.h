#pragma once

#include <napi.h>

#include <memory>
#include <optional>

#include "addon/environment.h"
#include "link/control_socket.h"

namespace kvss::addon {

/// One end of a control connection, for JavaScript.
class ControlChannel : public Napi::ObjectWrap<ControlChannel> {
 public:
  static Napi::Function Define(Napi::Env env);
  static Napi::Value Wrap(Napi::Env env, ControlSocket socket);
  explicit ControlChannel(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ControlChannel>(info) {}
  ~ControlChannel() override = default;

 private:
  static Napi::Value Connect(const Napi::CallbackInfo& info);
  static Napi::Value Adopt(const Napi::CallbackInfo& info);
  void Start(const Napi::CallbackInfo& info);
  void Send(const Napi::CallbackInfo& info);
  void CloseFromJs(const Napi::CallbackInfo& info);
  void Ref(const Napi::CallbackInfo& info);
  void Unref(const Napi::CallbackInfo& info);
  Napi::Value PeerPid(const Napi::CallbackInfo& info);
  Napi::Value PeerUid(const Napi::CallbackInfo& info);

  void Readable(Napi::Env env);
  void End(Napi::Env env);
  void Close();

  std::optional<ControlSocket> socket_;
  ControlSocket::Peer peer_;
  std::shared_ptr<Reactor> reactor_;
  uint64_t socket_watch_ = 0;
  uint64_t pid_watch_ = 0;
  Napi::FunctionReference on_packet_;
  Napi::FunctionReference on_end_;
};

/// A listening control socket, for JavaScript.
class ControlListenerWrap : public Napi::ObjectWrap<ControlListenerWrap> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit ControlListenerWrap(const Napi::CallbackInfo& info);

 private:
  void Readable(Napi::Env env);
  void CloseFromJs(const Napi::CallbackInfo& info);

  std::optional<ControlListener> listener_;
  std::shared_ptr<Reactor> reactor_;
  uint64_t watch_ = 0;
  Napi::FunctionReference on_connection_;
};

}  // namespace kvss::addon
