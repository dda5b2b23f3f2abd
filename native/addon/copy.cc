#include "addon/copy.h"

#include <cstddef>

#include "shm/piece_copy.h"

namespace kvss::addon {
namespace {

struct Bytes {
  std::byte* data = nullptr;
  size_t length = 0;
};

bool BytesOf(napi_env env, napi_value value, Bytes* bytes) {
  bool is_typed_array = false;
  if (napi_is_typedarray(env, value, &is_typed_array) != napi_ok || !is_typed_array) return false;
  napi_typedarray_type type = napi_int8_array;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &bytes->length, &data, nullptr, nullptr) != napi_ok)
    return false;
  bytes->data = static_cast<std::byte*>(data);
  return type == napi_uint8_array;
}

}  // namespace

// Once for every piece: the plain C interface takes half the time of its wrapper.
napi_value CopyPieceFromJs(napi_env env, napi_callback_info info) {
  size_t count = 2;
  napi_value arguments[2];
  Bytes target;
  Bytes source;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < 2 ||
      !BytesOf(env, arguments[0], &target) || !BytesOf(env, arguments[1], &source)) {
    napi_throw_type_error(env, nullptr, "copyPiece: two Uint8Arrays are needed");
    return nullptr;
  }
  if (target.length < source.length) {
    napi_throw_range_error(env, nullptr, "copyPiece: the target is shorter than the source");
    return nullptr;
  }
  if (target.data < source.data + source.length && source.data < target.data + source.length &&
      source.length > 0) {
    napi_throw_range_error(env, nullptr, "copyPiece: the target overlaps the source");
    return nullptr;
  }
  CopyPiece(target.data, source.data, source.length);
  return nullptr;
}

}  // namespace kvss::addon
