// What libFuzzer calls: one program for each of the hostile clients, named by the build.

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvss::fuzz::KVSS_FUZZ_PLAY({data, size});
  return 0;
}
