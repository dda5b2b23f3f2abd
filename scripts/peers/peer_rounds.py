"""What the runners of peers that are driven from Python have in common.

`kvss bench peers` starts a runner, waits for a line that says that it is ready, and then asks for one round after the
other: a line `set` or `get` on standard input, one JSON object on standard output for each. Standard input ends when
whoever asked is gone; then the runner and all that it has started go too.
"""

import argparse
import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--piece-bytes", type=int, required=True)
    parser.add_argument("--pieces", type=int, required=True, help="pieces of one round, each under a key of its own")
    return parser


class Memory:
    """Where values come from, and as much where they go to: larger than the cache, filled once."""

    def __init__(self, piece_bytes, pieces):
        self.piece_bytes = piece_bytes
        self.pieces = pieces
        total = piece_bytes * pieces
        self.source = mmap.mmap(-1, total)
        self.target = mmap.mmap(-1, total)
        words = bytearray(piece_bytes)
        for word in range(piece_bytes // 4):
            value = (word + 1) * 0x9E3779B1 & 0xFFFFFFFF
            words[4 * word : 4 * word + 4] = value.to_bytes(4, "little")
        for _ in range(pieces):
            self.source.write(words)
        self.target.write(bytes(total))
        self.source_address = ctypes.addressof(ctypes.c_char.from_buffer(self.source))
        self.target_address = ctypes.addressof(ctypes.c_char.from_buffer(self.target))

    def spoil(self):
        ctypes.memset(self.target_address, 0, self.piece_bytes * self.pieces)

    def compare(self):
        if self.source[:] != self.target[:]:
            raise RuntimeError("what came back is not what was stored")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_port(port, child, patience_s=30):
    give_up = time.monotonic() + patience_s
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1)
        except OSError:
            if child.poll() is not None:
                raise RuntimeError(f"{child.args[0]} ended with {child.returncode}") from None
            if time.monotonic() > give_up:
                raise RuntimeError(f"{child.args[0]} does not listen on port {port}") from None
            time.sleep(0.05)


def start(args):
    """A child that goes when this process goes, however that dies. What it prints is of no interest."""

    def tie():
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)

    return subprocess.Popen(
        args,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=tie,
    )


def serve(make):
    """Makes the peer and runs the rounds that are asked for."""
    # Libraries print to standard output too: answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        peer = make()
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            print(json.dumps({"seconds": getattr(peer, line.strip())()}), file=answers)
    except Exception as thrown:
        print(json.dumps({"error": f"{type(thrown).__name__}: {thrown}"}), file=answers)
    answers.flush()
    # Threads of a library need not agree.
    os._exit(0)
