"""The LMCache server (`lm://`) over TCP: `python -m lmcache.v1.server` in a process of its own, and here a client that
sends from memory and receives into place. Needs PyPI `lmcache`.
"""

import struct
import sys
import time

import peer_rounds

KEY_BYTES = 150
PUT, GET = 1, 2
SUCCESS = 200
# How its own client labels plain bytes: uint8, of a memory format that takes a shape of four.
UINT8, FORMAT = 6, 1
REPLY = struct.Struct("9i")


class LmCache:
    def __init__(self, memory):
        self.memory = memory
        port = peer_rounds.free_port()
        self.server = peer_rounds.start([sys.executable, "-m", "lmcache.v1.server", "127.0.0.1", str(port)])
        self.socket = peer_rounds.await_port(port, self.server, patience_s=60)
        self.socket.settimeout(30)

    def _request(self, command, piece):
        size = self.memory.piece_bytes
        key = f"bench@1@0@{piece:x}@uint8".encode().ljust(KEY_BYTES)
        return struct.pack(f"9i{KEY_BYTES}s", command, size, FORMAT, UINT8, 0, size, 0, 0, 0, key)

    def _fill(self, view):
        while view:
            received = self.socket.recv_into(view)
            if received == 0:
                raise RuntimeError("the server closed the connection")
            view = view[received:]

    def _get(self, piece, view):
        self.socket.sendall(self._request(GET, piece))
        head = bytearray(REPLY.size)
        self._fill(memoryview(head))
        code, length = REPLY.unpack(head)[:2]
        if code != SUCCESS or length != self.memory.piece_bytes:
            raise RuntimeError(f"get was answered with code {code} and {length} bytes")
        self._fill(view)

    def set(self):
        memory = self.memory
        source = memoryview(memory.source)
        scratch = memoryview(bytearray(memory.piece_bytes))
        began = time.perf_counter()
        for piece in range(memory.pieces):
            at = piece * memory.piece_bytes
            self.socket.sendall(self._request(PUT, piece))
            self.socket.sendall(source[at : at + memory.piece_bytes])
        # Nothing is answered to a put: that the last one is there shows that all are.
        self._get(memory.pieces - 1, scratch)
        return time.perf_counter() - began

    def get(self):
        memory = self.memory
        memory.spoil()
        target = memoryview(memory.target)
        began = time.perf_counter()
        for piece in range(memory.pieces):
            at = piece * memory.piece_bytes
            self._get(piece, target[at : at + memory.piece_bytes])
        seconds = time.perf_counter() - began
        memory.compare()
        return seconds


if __name__ == "__main__":
    options = peer_rounds.arguments(__doc__).parse_args()
    peer_rounds.serve(lambda: LmCache(peer_rounds.Memory(options.piece_bytes, options.pieces)))
