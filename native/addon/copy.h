#pragma once

#include <node_api.h>

namespace kvss::addon {

/// copyPiece(target: Uint8Array, source: Uint8Array): copies all of the source to the beginning of the
/// target; see shm/piece_copy.h. Throws a TypeError where one of them is no Uint8Array, and a RangeError
/// where the target is shorter or overlaps the source.
napi_value CopyPieceFromJs(napi_env env, napi_callback_info info);

}  // namespace kvss::addon
