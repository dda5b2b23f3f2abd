#include "shm/piece_copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace kvss {

#if defined(__x86_64__)

namespace {

constexpr size_t kStreamFrom = 64 * 1024;
/// A line of the cache: what one burst to memory writes.
constexpr size_t kLine = 64;
/// How far ahead of the copying the source is fetched.
constexpr size_t kAhead = 1024;

void CopyLine(std::byte* target, const std::byte* source) {
  const auto* from = reinterpret_cast<const __m128i*>(source);
  auto* to = reinterpret_cast<__m128i*>(target);
  const __m128i a = _mm_loadu_si128(from);
  const __m128i b = _mm_loadu_si128(from + 1);
  const __m128i c = _mm_loadu_si128(from + 2);
  const __m128i d = _mm_loadu_si128(from + 3);
  _mm_stream_si128(to, a);
  _mm_stream_si128(to + 1, b);
  _mm_stream_si128(to + 2, c);
  _mm_stream_si128(to + 3, d);
}

}  // namespace

void CopyPiece(std::byte* target, const std::byte* source, size_t bytes) {
  if (bytes < kStreamFrom) {
    if (bytes > 0) std::memcpy(target, source, bytes);
    return;
  }
  // Only whole lines of the target can be streamed.
  const size_t head = (kLine - reinterpret_cast<uintptr_t>(target) % kLine) % kLine;
  std::memcpy(target, source, head);
  size_t at = head;
  for (; at + kLine <= bytes; at += kLine) {
    // A hint: the address need not be one.
    _mm_prefetch(reinterpret_cast<const char*>(source + at) + kAhead, _MM_HINT_NTA);
    CopyLine(target + at, source + at);
  }
  std::memcpy(target + at, source + at, bytes - at);
  // Streamed stores are not ordered with the store that publishes them otherwise.
  _mm_sfence();
}

#else

void CopyPiece(std::byte* target, const std::byte* source, size_t bytes) {
  std::memcpy(target, source, bytes);
}

#endif

}  // namespace kvss
