"""Mooncake Store over TCP: a master, a process that holds the memory, and here the client.

Needs PyPI `mooncake-transfer-engine`, or `mooncake-transfer-engine-non-cuda` on a machine without CUDA.
"""

import os
import shutil
import sys
import time

import peer_rounds

HOST = "127.0.0.1"
METADATA = "P2PHANDSHAKE"
LOCAL_BYTES = 64 << 20
# It takes no small ones.
SEGMENT_BYTES = 256 << 20
LEASE_MS = 500


def open_store(segment_bytes, master):
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    status = store.setup(HOST, METADATA, segment_bytes, LOCAL_BYTES, "tcp", "", master)
    if status != 0:
        raise RuntimeError(f"the store could not be set up: {status}")
    return store


def hold_segment(bytes_, master):
    store = open_store(bytes_, master)
    while store:
        time.sleep(3600)


class Mooncake:
    # Requests that go as one; each is a call of the library.
    BATCH = 32

    def __init__(self, memory):
        self.memory = memory
        beside = os.path.join(os.path.dirname(sys.executable), "mooncake_master")
        binary = beside if os.path.exists(beside) else shutil.which("mooncake_master")
        if not binary:
            raise RuntimeError("mooncake_master is not installed beside python3")
        port = peer_rounds.free_port()
        # Keys that were read are kept for so long; they have to go before the next round.
        flags = {"rpc_port": port, "metrics_port": peer_rounds.free_port(), "default_kv_lease_ttl": LEASE_MS}
        self.master = peer_rounds.start([binary, *(f"--{name}={value}" for name, value in flags.items())])
        peer_rounds.await_port(port, self.master).close()
        address = f"{HOST}:{port}"
        bytes_ = memory.piece_bytes * memory.pieces
        # More than is stored: nothing is evicted.
        held = max(2 * bytes_, SEGMENT_BYTES)
        self.holder = peer_rounds.start([sys.executable, "-B", __file__, "--hold", str(held), address])
        self.store = open_store(0, address)
        for region in (memory.source_address, memory.target_address):
            if self.store.register_buffer(region, bytes_) != 0:
                raise RuntimeError("the store refused to register memory")
        self.round = 0
        give_up = time.monotonic() + 30
        while self.store.put_from("probe", memory.source_address, memory.piece_bytes) != 0:
            if self.holder.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError("the process that holds the memory did not come up")
            time.sleep(0.1)

    def _batches(self):
        memory = self.memory
        for first in range(0, memory.pieces, self.BATCH):
            pieces = range(first, min(first + self.BATCH, memory.pieces))
            keys = [f"{self.round}:{piece}" for piece in pieces]
            yield keys, [piece * memory.piece_bytes for piece in pieces], [memory.piece_bytes] * len(keys)

    def set(self):
        # A key that exists is not written again.
        time.sleep(1.2 * LEASE_MS / 1000)
        self.store.remove_all()
        self.round += 1
        batches = list(self._batches())
        began = time.perf_counter()
        for keys, offsets, sizes in batches:
            results = self.store.batch_put_from(keys, [self.memory.source_address + at for at in offsets], sizes)
            if any(result != 0 for result in results):
                raise RuntimeError(f"put failed: {next(result for result in results if result != 0)}")
        return time.perf_counter() - began

    def get(self):
        self.memory.spoil()
        batches = list(self._batches())
        began = time.perf_counter()
        for keys, offsets, sizes in batches:
            results = self.store.batch_get_into(keys, [self.memory.target_address + at for at in offsets], sizes)
            if list(results) != sizes:
                raise RuntimeError(f"get failed: {next(result for result in results if result != sizes[0])}")
        seconds = time.perf_counter() - began
        self.memory.compare()
        return seconds


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hold"]:
        hold_segment(int(sys.argv[2]), sys.argv[3])
    else:
        options = peer_rounds.arguments(__doc__).parse_args()
        peer_rounds.serve(lambda: Mooncake(peer_rounds.Memory(options.piece_bytes, options.pieces)))
