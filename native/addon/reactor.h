#pragma once

#include <napi.h>
#include <sys/epoll.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>

#include "base/unique_fd.h"

namespace kvss::addon {

/// Tells JavaScript when a descriptor becomes readable or writable: one thread with one epoll for each
/// JavaScript environment. (libuv's poll handles would do, but their headers are not part of Node-API.)
///
/// All methods are called on the JavaScript thread, and handlers run there.
class Reactor : public std::enable_shared_from_this<Reactor> {
 public:
  static std::shared_ptr<Reactor> For(Napi::Env env);
  ~Reactor();

  using Handler = std::function<void(Napi::Env)>;

  /// Runs `handler` each time `fd` is ready for one of `events`, those of epoll, until Unwatch. The
  /// descriptor must stay open until then. A watch keeps the process alive until Unref. Answers 0 where the
  /// kernel refuses.
  uint64_t Watch(int fd, Handler handler, uint32_t events = EPOLLIN);
  /// As Watch, and throws where the kernel refuses.
  uint64_t MustWatch(int fd, Handler handler);
  void Unwatch(uint64_t id);
  void Ref(uint64_t id);
  void Unref(uint64_t id);

 private:
  explicit Reactor(Napi::Env env);
  void Start();
  void Stop();
  void Loop();
  void Dispatch(Napi::Env env, uint64_t id);
  void CountReference(int change);

  struct Watched {
    int fd;
    Handler handler;
    uint32_t events;
    bool referenced;
  };

  Napi::Env env_;
  UniqueFd epoll_;
  UniqueFd stop_wake_;
  std::thread thread_;
  Napi::ThreadSafeFunction notify_;
  std::unordered_map<uint64_t, std::shared_ptr<Watched>> watched_;
  uint64_t next_id_ = 1;
  int references_ = 0;
  bool stopped_ = false;
};

}  // namespace kvss::addon
