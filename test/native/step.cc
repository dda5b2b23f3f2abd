// What KVSS_STEP does in the addon for tests. KVSS_STEP_AT is the number of the step at which the process
// gets the signal KVSS_STEP_SIGNAL (9 unless told); KVSS_STEP_LOG is a file that the step is named in, or all
// of them where KVSS_STEP_AT is 0.
#include "base/step.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <string>

namespace kvss {
namespace {

long NumberFrom(const char* variable, long fallback) {
  const char* text = std::getenv(variable);
  return text == nullptr ? fallback : std::atol(text);
}

const long step_at = NumberFrom("KVSS_STEP_AT", -1);
const int step_signal = static_cast<int>(NumberFrom("KVSS_STEP_SIGNAL", SIGKILL));
std::atomic<long> steps_reached{0};

void Log(long number, const char* name) {
  const char* path = std::getenv("KVSS_STEP_LOG");
  if (path == nullptr) return;
  const int fd = ::open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) return;
  const std::string line = std::to_string(number) + " " + name + "\n";
  (void)!::write(fd, line.data(), line.size());
  ::close(fd);
}

}  // namespace

void ReachStep(const char* name) {
  if (step_at < 0) return;
  const int saved = errno;
  const long number = steps_reached.fetch_add(1) + 1;
  if (step_at == 0 || number == step_at) Log(number, name);
  // To this thread: it must not take another step. The kernel takes the others along.
  if (number == step_at) ::raise(step_signal);
  errno = saved;
}

}  // namespace kvss
