#include "addon/control.h"

#include "addon/reactor.h"

namespace kvss::addon {

// ---- ControlChannel
// ---------------------------------------------------------------------------------------------

Napi::Function ControlChannel::Define(Napi::Env env) {
  Napi::Function constructor = DefineClass(env, "ControlChannel",
                                           {
                                               StaticMethod<&ControlChannel::Connect>("connect"),
                                               StaticMethod<&ControlChannel::Adopt>("adopt"),
                                               InstanceMethod<&ControlChannel::Start>("start"),
                                               InstanceMethod<&ControlChannel::Send>("send"),
                                               InstanceMethod<&ControlChannel::CloseFromJs>("close"),
                                               InstanceMethod<&ControlChannel::Ref>("ref"),
                                               InstanceMethod<&ControlChannel::Unref>("unref"),
                                               InstanceAccessor<&ControlChannel::PeerPid>("peerPid"),
                                               InstanceAccessor<&ControlChannel::PeerUid>("peerUid"),
                                           });
  Environment::Of(env).channel_class = Napi::Persistent(constructor);
  return constructor;
}

Napi::Value ControlChannel::Wrap(Napi::Env env, ControlSocket socket) {
  auto peer = socket.Identify();
  if (!peer.ok()) throw ToJsError(env, peer.error());
  Napi::Object object = Environment::Of(env).channel_class.New({});
  ControlChannel* channel = Unwrap(object);
  channel->socket_.emplace(std::move(socket));
  channel->peer_ = std::move(peer.value());
  return object;
}

Napi::Value ControlChannel::Connect(const Napi::CallbackInfo& info) {
  auto socket = ControlSocket::Connect(info[0].As<Napi::String>().Utf8Value());
  if (!socket.ok()) throw ToJsError(info.Env(), socket.error());
  return Wrap(info.Env(), std::move(socket.value()));
}

Napi::Value ControlChannel::Adopt(const Napi::CallbackInfo& info) {
  std::vector<UniqueFd> fds = DescriptorBundle::Take(info[0], 1);
  return Wrap(info.Env(), ControlSocket(std::move(fds.front()), ControlSocket::Framing::kStream));
}

void ControlChannel::Start(const Napi::CallbackInfo& info) {
  if (!socket_ || !on_packet_.IsEmpty())
    throw Napi::Error::New(info.Env(), "the channel is closed or started already");
  on_packet_ = Napi::Persistent(info[0].As<Napi::Function>());
  on_end_ = Napi::Persistent(info[1].As<Napi::Function>());
  // Watched objects must not be collected while the kernel may still report events for them.
  Napi::ObjectWrap<ControlChannel>::Ref();
  reactor_ = Reactor::For(info.Env());
  socket_watch_ = reactor_->Watch(socket_->fd(), [this](Napi::Env env) { Readable(env); });
  // A peer that cannot be heard has gone.
  if (socket_watch_ == 0) return End(info.Env());
  if (peer_.pidfd.valid()) {
    pid_watch_ = reactor_->Watch(peer_.pidfd.get(), [this](Napi::Env env) { End(env); });
    reactor_->Unref(pid_watch_);
  }
}

void ControlChannel::Readable(Napi::Env env) {
  // Bounded, so that one chatty peer cannot hold the event loop.
  for (int packets = 0; packets < 16 && socket_; ++packets) {
    ControlPacket packet;
    switch (socket_->Receive(&packet)) {
      case ControlSocket::Event::kNothing:
        return;
      case ControlSocket::Event::kEnd:
        return End(env);
      case ControlSocket::Event::kPacket: {
        Napi::HandleScope scope(env);
        Napi::Uint8Array bytes = Napi::Uint8Array::New(env, packet.bytes.size());
        std::copy(packet.bytes.begin(), packet.bytes.end(), bytes.Data());
        Napi::Value bundle = packet.descriptors.empty()
                                 ? env.Null()
                                 : DescriptorBundle::Wrap(env, std::move(packet.descriptors));
        on_packet_.MakeCallback(Value(), {bytes, bundle});
      }
    }
  }
}

void ControlChannel::End(Napi::Env env) {
  if (!socket_) return;
  Napi::HandleScope scope(env);
  const Napi::Function on_end = on_end_.Value();
  Close();
  on_end.MakeCallback(env.Global(), {});
}

void ControlChannel::Send(const Napi::CallbackInfo& info) {
  if (!socket_) throw ToJsError(info.Env(), Error{proto::Status::kNotAllowed, "the connection has ended"});
  const Napi::Uint8Array bytes = info[0].As<Napi::Uint8Array>();
  std::vector<UniqueFd> descriptors;
  if (info.Length() > 1 && !info[1].IsNull() && !info[1].IsUndefined())
    descriptors = DescriptorBundle::TakeAll(info[1]);
  const Outcome sent = socket_->Send(bytes.Data(), bytes.ByteLength(), descriptors);
  if (!sent.ok()) throw ToJsError(info.Env(), sent.error());
}

void ControlChannel::CloseFromJs(const Napi::CallbackInfo&) { Close(); }

void ControlChannel::Close() {
  if (!socket_) return;
  if (reactor_) {
    reactor_->Unwatch(socket_watch_);
    reactor_->Unwatch(pid_watch_);
    Napi::ObjectWrap<ControlChannel>::Unref();
  }
  socket_.reset();
  peer_.pidfd.Reset();
  on_packet_.Reset();
  on_end_.Reset();
}

void ControlChannel::Ref(const Napi::CallbackInfo&) {
  if (socket_ && reactor_) reactor_->Ref(socket_watch_);
}

void ControlChannel::Unref(const Napi::CallbackInfo&) {
  if (socket_ && reactor_) reactor_->Unref(socket_watch_);
}

Napi::Value ControlChannel::PeerPid(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), peer_.pid);
}
Napi::Value ControlChannel::PeerUid(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), peer_.uid);
}

// ---- ControlListener
// --------------------------------------------------------------------------------------------

Napi::Function ControlListenerWrap::Define(Napi::Env env) {
  return DefineClass(env, "ControlListener", {InstanceMethod<&ControlListenerWrap::CloseFromJs>("close")});
}

ControlListenerWrap::ControlListenerWrap(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<ControlListenerWrap>(info) {
  auto listener = ControlListener::Listen(info[0].As<Napi::String>().Utf8Value());
  if (!listener.ok()) throw ToJsError(info.Env(), listener.error());
  listener_.emplace(std::move(listener.value()));
  on_connection_ = Napi::Persistent(info[1].As<Napi::Function>());
  reactor_ = Reactor::For(info.Env());
  watch_ = reactor_->MustWatch(listener_->fd(), [this](Napi::Env env) { Readable(env); });
  Ref();
}

void ControlListenerWrap::Readable(Napi::Env env) {
  while (listener_) {
    auto accepted = listener_->Accept();
    // Out of descriptors: the connection stays in the kernel's queue until some are free.
    if (!accepted.ok() || !accepted.value()) return;
    Napi::HandleScope scope(env);
    on_connection_.MakeCallback(Value(), {ControlChannel::Wrap(env, std::move(*accepted.value()))});
  }
}

void ControlListenerWrap::CloseFromJs(const Napi::CallbackInfo&) {
  if (!listener_) return;
  reactor_->Unwatch(watch_);
  listener_.reset();
  on_connection_.Reset();
  Unref();
}

}  // namespace kvss::addon
