// A library to be preloaded: lets the call number KVSS_FAIL_AT of the function KVSS_FAIL_CALL fail with
// KVSS_FAIL_ERRNO. Only calls that come from our addon count: what Node itself does is not what is tested. It
// says in the file KVSS_FAIL_LOG that it has done so.
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

const char* Setting(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? "" : text;
}

// Where the addon lies once it is loaded: looking it up for every allocation of the process would take for
// ever.
std::atomic<uintptr_t> addon_begin{0};
std::atomic<uintptr_t> addon_end{0};

int NoteAddon(dl_phdr_info* info, size_t, void*) {
  if (std::strstr(info->dlpi_name, "kvss.node") == nullptr) return 0;
  uintptr_t end = 0;
  for (int index = 0; index < info->dlpi_phnum; ++index) {
    const auto& header = info->dlpi_phdr[index];
    if (header.p_type == PT_LOAD) end = info->dlpi_addr + header.p_vaddr + header.p_memsz;
  }
  addon_begin.store(info->dlpi_addr);
  addon_end.store(end);
  return 1;
}

bool FromAddon(void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  return address >= addon_begin.load(std::memory_order_relaxed) &&
         address < addon_end.load(std::memory_order_relaxed);
}

/// Whether this call is the one that is to fail.
bool Fails(const char* call, void* caller) {
  static const char* const chosen = Setting("KVSS_FAIL_CALL");
  static const long fail_at = std::atol(Setting("KVSS_FAIL_AT"));
  static std::atomic<long> calls{0};
  if (std::strcmp(chosen, call) != 0 || !FromAddon(caller) || calls.fetch_add(1) + 1 != fail_at) return false;
  const int log = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, Setting("KVSS_FAIL_LOG"),
                                             O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  (void)!::write(log, call, std::strlen(call));
  ::close(log);
  errno = std::atoi(Setting("KVSS_FAIL_ERRNO"));
  return true;
}

template <typename Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

// Each stands in for the function of the same name in the C library.
#define STAND_IN(result, name, parameters, arguments, failure)                        \
  extern "C" __attribute__((visibility("default"))) result name parameters noexcept { \
    static auto* const next = Next<result parameters>(#name);                         \
    if (Fails(#name, __builtin_return_address(0))) return failure;                    \
    return next arguments;                                                            \
  }

STAND_IN(int, memfd_create, (const char* label, unsigned flags), (label, flags), -1)
STAND_IN(int, ftruncate, (int fd, off_t length), (fd, length), -1)
STAND_IN(int, madvise, (void* data, size_t length, int advice), (data, length, advice), -1)
STAND_IN(void*, mmap, (void* at, size_t length, int protection, int flags, int fd, off_t offset),
         (at, length, protection, flags, fd, offset), MAP_FAILED)
STAND_IN(int, eventfd, (unsigned value, int flags), (value, flags), -1)
STAND_IN(int, pipe2, (int* ends, int flags), (ends, flags), -1)
STAND_IN(int, epoll_create1, (int flags), (flags), -1)
STAND_IN(int, timerfd_create, (int clock, int flags), (clock, flags), -1)
STAND_IN(int, socket, (int domain, int type, int protocol), (domain, type, protocol), -1)

#undef STAND_IN
#define STAND_IN(result, name, parameters, arguments)                        \
  extern "C" __attribute__((visibility("default"))) result name parameters { \
    static auto* const next = Next<result parameters>(#name);                \
    if (Fails(#name, __builtin_return_address(0))) return -1;                \
    return next arguments;                                                   \
  }

STAND_IN(int, fallocate, (int fd, int mode, off_t offset, off_t length), (fd, mode, offset, length))
STAND_IN(ssize_t, pwrite, (int fd, const void* data, size_t length, off_t offset), (fd, data, length, offset))
STAND_IN(int, accept4, (int fd, sockaddr* peer, socklen_t* length, int flags), (fd, peer, length, flags))
STAND_IN(ssize_t, sendmsg, (int fd, const msghdr* message, int flags), (fd, message, flags))
STAND_IN(ssize_t, recvmsg, (int fd, msghdr* message, int flags), (fd, message, flags))
STAND_IN(ssize_t, recv, (int fd, void* data, size_t length, int flags), (fd, data, length, flags))

extern "C" __attribute__((visibility("default"))) void* dlopen(const char* file, int flags) noexcept {
  static auto* const next = Next<void*(const char*, int)>("dlopen");
  void* const loaded = next(file, flags);
  if (loaded != nullptr && addon_end.load() == 0) ::dl_iterate_phdr(NoteAddon, nullptr);
  return loaded;
}

// operator new, by the name that it has for the linker.
extern "C" __attribute__((visibility("default"))) void* _Znwm(size_t bytes) {
  static auto* const next = Next<void*(size_t)>("_Znwm");
  if (Fails("operator new", __builtin_return_address(0))) throw std::bad_alloc();
  return next(bytes);
}

extern "C" __attribute__((visibility("default"))) int epoll_ctl(int epoll, int operation, int fd,
                                                                epoll_event* event) noexcept {
  static auto* const next = Next<int(int, int, int, epoll_event*)>("epoll_ctl");
  // To change an entry or to take it out needs nothing that could be missing.
  if (operation == EPOLL_CTL_ADD && Fails("epoll_ctl", __builtin_return_address(0))) return -1;
  return next(epoll, operation, fd, event);
}

extern "C" __attribute__((visibility("default"))) int fcntl(int fd, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void* const argument = va_arg(rest, void*);
  va_end(rest);
  static auto* const next = Next<int(int, int, ...)>("fcntl");
  if (command == F_DUPFD_CLOEXEC && Fails("fcntl", __builtin_return_address(0))) return -1;
  return next(fd, command, argument);
}
