#include "addon/reactor.h"

#include <sys/eventfd.h>

#include "addon/environment.h"

namespace kvss::addon {
namespace {

constexpr uint64_t kStop = 0;

}  // namespace

std::shared_ptr<Reactor> Reactor::For(Napi::Env env) {
  Environment& environment = Environment::Of(env);
  if (!environment.reactor) {
    // Kept only once it works: the next one to ask may find descriptors again.
    const std::shared_ptr<Reactor> reactor(new Reactor(env));
    reactor->Start();
    environment.reactor = reactor;
  }
  return environment.reactor;
}

Reactor::Reactor(Napi::Env env)
    : env_(env),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      stop_wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Reactor::~Reactor() { Stop(); }

void Reactor::Start() {
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kStop}};
  if (!epoll_.valid() || !stop_wake_.valid() ||
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stop_wake_.get(), &event) != 0) {
    throw Napi::Error::New(env_, "out of file descriptors: cannot wait for KVSS events");
  }
  notify_ = Napi::ThreadSafeFunction::New(env_, Napi::Function(), "kvss-reactor", 0, 1);
  notify_.Unref(env_);
  // A hook and not a finalizer: it runs before the environment closes the thread-safe function.
  env_.AddCleanupHook([weak = weak_from_this()] {
    if (auto self = weak.lock()) self->Stop();
  });
  thread_ = std::thread([this] { Loop(); });
}

void Reactor::Stop() {
  if (std::exchange(stopped_, true)) return;
  if (!thread_.joinable()) return;
  ::eventfd_write(stop_wake_.get(), 1);
  thread_.join();
  notify_.Release();
  watched_.clear();
}

void Reactor::Loop() {
  epoll_event events[32];
  for (;;) {
    const int count = ::epoll_wait(epoll_.get(), events, 32, -1);
    for (int index = 0; index < count; ++index) {
      const uint64_t id = events[index].data.u64;
      if (id == kStop) return;
      notify_.NonBlockingCall([this, id](Napi::Env env, Napi::Function) {
        // The environment may be going down while calls are still queued.
        if (env != nullptr && !stopped_) Dispatch(env, id);
      });
    }
  }
}

void Reactor::Dispatch(Napi::Env env, uint64_t id) {
  const auto found = watched_.find(id);
  if (found == watched_.end()) return;
  // Held, because the handler may unwatch itself.
  const std::shared_ptr<Watched> watched = found->second;
  Napi::HandleScope scope(env);
  watched->handler(env);
  // One-shot: armed again only now, so that a descriptor that stays readable cannot flood the queue.
  if (watched_.contains(id)) {
    epoll_event event{.events = watched->events | EPOLLONESHOT, .data = {.u64 = id}};
    (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, watched->fd, &event);
  }
}

uint64_t Reactor::Watch(int fd, Handler handler, uint32_t events) {
  if (stopped_) return 0;
  const uint64_t id = next_id_++;
  epoll_event event{.events = events | EPOLLONESHOT, .data = {.u64 = id}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return 0;
  watched_.emplace(id, std::make_shared<Watched>(Watched{fd, std::move(handler), events, true}));
  CountReference(+1);
  return id;
}

uint64_t Reactor::MustWatch(int fd, Handler handler) {
  const uint64_t id = Watch(fd, std::move(handler));
  if (id == 0)
    throw ToJsError(env_, SystemError(proto::Status::kLimitExceeded, "cannot wait for KVSS events"));
  return id;
}

void Reactor::Unwatch(uint64_t id) {
  const auto found = watched_.find(id);
  if (found == watched_.end()) return;
  (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, found->second->fd, nullptr);
  if (found->second->referenced) CountReference(-1);
  watched_.erase(found);
}

void Reactor::Ref(uint64_t id) {
  const auto found = watched_.find(id);
  if (found != watched_.end() && !std::exchange(found->second->referenced, true)) CountReference(+1);
}

void Reactor::Unref(uint64_t id) {
  const auto found = watched_.find(id);
  if (found != watched_.end() && std::exchange(found->second->referenced, false)) CountReference(-1);
}

void Reactor::CountReference(int change) {
  if (stopped_) return;
  const bool was_alive = references_ > 0;
  references_ += change;
  if (!was_alive && references_ > 0) notify_.Ref(env_);
  if (was_alive && references_ == 0) notify_.Unref(env_);
}

}  // namespace kvss::addon
