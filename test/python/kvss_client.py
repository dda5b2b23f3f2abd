#!/usr/bin/env python3
"""A client of KVSS over TCP in plain Python, written from docs/PROTOCOL.md alone.

It shows that the page is enough to write one. `kvss_client.py HOST PORT [TOKEN]` runs a script against a daemon and
prints what it saw as one JSON object. Every wait has a time limit. It is meant to be read: it sends payload with
blocking calls, which is right only while its pieces fit into the buffers of a socket.
"""

import json
import selectors
import socket
import struct
import sys
from collections import namedtuple

TIMEOUT_S = 20.0

VERSION = 1
FRAME_MAGIC = 0x5353564B
LANE_MAGIC = 0x4C53564B
STREAM_MAGIC = 0x4453564B
MAX_FRAME_BYTES = 65536

FRAME_HEADER = struct.Struct("<IHHIIQ")
LANE_HELLO = struct.Struct("<IHHIIQ32sQ")
LANE_WELCOME = struct.Struct("<IHHQ")
STREAM_HEADER = struct.Struct("<IHHIIQQ")
DESCRIPTOR = struct.Struct("<HHIIIQQQQIIQ")
COMPLETION = struct.Struct("<HHIQQQ")

HELLO, WELCOME = 1, 2
GRANT, GRANTED = 5, 6
RELEASE, RELEASED = 7, 8
STATS, STATS_REPLY = 9, 10
ATTACH_STREAM, STREAM_ATTACHED = 11, 12
TICKET, TICKET_ISSUED = 13, 14
ERROR, DRAINING = 64, 65

CONTROL, HIO, WIO_EVICT, WIO_REFILL = 1, 2, 3, 4
DESCRIPTORS, COMPLETIONS, PAYLOAD = 1, 2, 3
EVICT, REFILL, DELETE = 1, 2, 3
SCRUB = 1
OK = 0


class KvssError(Exception):
    """Something went wrong between us and the daemon. The text says what."""


# ---- msgpack: maps, arrays, strings, bytes, integers, floats, booleans and nil


def pack(value):
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        if 0 <= value < 0x80:
            return bytes([value])
        if -32 <= value < 0:
            return struct.pack(">b", value)
        for code, form, low, high in (
            (0xCC, ">B", 0, 0xFF),
            (0xCD, ">H", 0, 0xFFFF),
            (0xCE, ">I", 0, 0xFFFFFFFF),
            (0xCF, ">Q", 0, 0xFFFFFFFFFFFFFFFF),
            (0xD3, ">q", -(1 << 63), -1),
        ):
            if low <= value <= high:
                return bytes([code]) + struct.pack(form, value)
        raise KvssError(f"{value} does not fit into 64 bits")
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return _length(len(text), (0xA0, 31), (0xD9, 0xDA, 0xDB)) + text
    if isinstance(value, (bytes, bytearray)):
        return _length(len(value), None, (0xC4, 0xC5, 0xC6)) + bytes(value)
    if isinstance(value, (list, tuple)):
        return _length(len(value), (0x90, 15), (None, 0xDC, 0xDD)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        items = b"".join(pack(key) + pack(item) for key, item in value.items())
        return _length(len(value), (0x80, 15), (None, 0xDE, 0xDF)) + items
    raise KvssError(f"cannot pack a {type(value).__name__}")


def _length(length, fix, codes):
    if fix and length <= fix[1]:
        return bytes([fix[0] | length])
    for code, form, high in zip(codes, (">B", ">H", ">I"), (0xFF, 0xFFFF, 0xFFFFFFFF)):
        if code is not None and length <= high:
            return bytes([code]) + struct.pack(form, length)
    raise KvssError(f"{length} elements are too many")


class _Unpacker:
    NUMBERS = {
        0xCA: ">f", 0xCB: ">d",
        0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
        0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
    }  # fmt: skip

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if self.at + count > len(self.data):
            raise KvssError("a payload ends in the middle of a value")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self):
        code = self.take(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code < 0x90:
            return self.map(code & 15)
        if code < 0xA0:
            return [self.value() for _ in range(code & 15)]
        if code < 0xC0:
            return self.take(code & 31).decode()
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in self.NUMBERS:
            return self.number(self.NUMBERS[code])
        if code in (0xC4, 0xC5, 0xC6):
            return self.take(self.number((">B", ">H", ">I")[code - 0xC4]))
        if code in (0xD9, 0xDA, 0xDB):
            return self.take(self.number((">B", ">H", ">I")[code - 0xD9])).decode()
        if code in (0xDC, 0xDD):
            return [self.value() for _ in range(self.number((">H", ">I")[code - 0xDC]))]
        if code in (0xDE, 0xDF):
            return self.map(self.number((">H", ">I")[code - 0xDE]))
        raise KvssError(f"msgpack type 0x{code:02x} is not part of the protocol")

    def map(self, length):
        return {self.value(): self.value() for _ in range(length)}


def unpack(data):
    reader = _Unpacker(data)
    value = reader.value()
    if reader.at != len(data):
        raise KvssError(f"{len(data) - reader.at} bytes follow the payload")
    return value


# ---- streams


class Stream:
    """A connection that has been made welcome."""

    def __init__(self, host, port, kind, shard=0, stream=0, session_id=0, ticket=bytes(32)):
        self.name = f"lane {stream} of kind {kind}"
        try:
            self.socket = socket.create_connection((host, port), timeout=TIMEOUT_S)
        except OSError as cause:
            raise KvssError(f"cannot connect to {host}:{port}: {cause}") from cause
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(LANE_HELLO.pack(LANE_MAGIC, VERSION, kind, shard, stream, session_id, ticket, 0))
        magic, version, status, _ = LANE_WELCOME.unpack(self.receive(LANE_WELCOME.size))
        if magic != LANE_MAGIC:
            raise KvssError(f"{host}:{port} is not a KVSS daemon")
        if version != VERSION:
            raise KvssError(f"the daemon speaks version {version}, this client version {VERSION}")
        if status != OK:
            raise KvssError(f"the daemon refused {self.name} with status {status}")

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError as cause:
            raise KvssError(f"{self.name}: cannot send: {cause}") from cause

    def receive(self, count):
        data = bytearray()
        while len(data) < count:
            try:
                part = self.socket.recv(count - len(data))
            except OSError as cause:
                raise KvssError(f"{self.name}: {len(data)} of {count} bytes came: {cause}") from cause
            if not part:
                raise KvssError(f"{self.name}: the daemon ended it")
            data += part
        return bytes(data)

    def send_frame(self, kind, payload, request_id=0, generation=0):
        self.send(STREAM_HEADER.pack(STREAM_MAGIC, VERSION, kind, len(payload), 0, request_id, generation) + payload)

    def close(self):
        self.socket.close()


class FrameParser:
    """Cuts the bytes of one lane into frames, however they come."""

    def __init__(self, lane, kind):
        self.lane, self.kind, self.data = lane, kind, bytearray()

    def read(self):
        """Reads once what is there and yields (requestId, generation, payload) of every frame that is whole."""
        try:
            part = self.lane.socket.recv(1 << 20)
        except OSError as cause:
            raise KvssError(f"{self.lane.name}: {cause}") from cause
        if not part:
            raise KvssError(f"{self.lane.name}: the daemon ended it")
        self.data += part
        while len(self.data) >= STREAM_HEADER.size:
            magic, version, kind, length, _, request_id, generation = STREAM_HEADER.unpack_from(self.data)
            if (magic, version, kind) != (STREAM_MAGIC, VERSION, self.kind):
                raise KvssError(f"{self.lane.name}: a frame of type {kind} and version {version} has no business here")
            end = STREAM_HEADER.size + length
            if len(self.data) < end:
                return
            payload = bytes(self.data[STREAM_HEADER.size : end])
            del self.data[:end]
            yield request_id, generation, payload


class Control:
    """The control connection: requests and their answers."""

    def __init__(self, host, port):
        self.stream = Stream(host, port, CONTROL)
        self.next_request = 1

    def request(self, kind, payload, expected):
        request_id = self.next_request
        self.next_request += 1
        body = pack(payload)
        self.stream.send(FRAME_HEADER.pack(FRAME_MAGIC, VERSION, kind, len(body), 0, request_id) + body)
        while True:
            magic, version, answer, length, _, echoed = FRAME_HEADER.unpack(self.stream.receive(FRAME_HEADER.size))
            if magic != FRAME_MAGIC or version != VERSION or length > MAX_FRAME_BYTES - FRAME_HEADER.size:
                raise KvssError("the daemon sent a control frame that makes no sense")
            content = unpack(self.stream.receive(length))
            if answer == ERROR:
                over = "the session is over" if echoed == 0 else f"request {kind} was refused"
                raise KvssError(f"{over}: {content['message']} (status {content['status']})")
            if answer == DRAINING:
                continue
            if answer != expected or echoed != request_id:
                raise KvssError(f"expected frame {expected} for request {request_id}, got {answer} for {echoed}")
            return content


# ---- one session on one shard

Completion = namedtuple("Completion", "opcode status slot user_data sequence generation evict_count command_count")


class ShardSession:
    """The two queues of one shard over lanes."""

    def __init__(self, host, port, control, session_id, shard, window, lanes):
        attached = control.request(ATTACH_STREAM, {"shard": shard, "window": window}, STREAM_ATTACHED)
        self.window, self.ticket = attached["window"], attached["ticket"]
        if len(self.ticket) != 32:
            raise KvssError(f"a ticket of {len(self.ticket)} bytes")
        self.address = (host, port)
        self.shard, self.session_id = shard, session_id
        self.selector = selectors.DefaultSelector()
        # Descriptors find all other lanes when they come.
        self.refill_lanes = [self._lane(WIO_REFILL, number) for number in range(lanes)]
        self.evict_lanes = [self._lane(WIO_EVICT, number) for number in range(lanes)]
        self.hio = self._lane(HIO, 0)
        self._watch(self.hio, COMPLETIONS, self._completed)
        for lane in self.refill_lanes:
            self._watch(lane, PAYLOAD, self._arrived)
        self.evicts = self.commands = 0  # descriptors sent in each queue
        self.unfinished = {"evicts": set(), "commands": set()}
        self.pieces = {}  # evicts whose payload is still to be sent
        self.completions = {"evicts": {}, "commands": {}}
        self.order = []  # (queue, sequence) as completions came
        self.refilled = {}  # sequence: (generation, bytes)
        self.evict_count = self.command_count = 0

    def _lane(self, kind, number, ticket=None):
        return Stream(*self.address, kind, self.shard, number, self.session_id, ticket or self.ticket)

    def add_evict_lane(self, ticket):
        """A lane that any process may open which was given a ticket. Answers its number."""
        self.evict_lanes.append(self._lane(WIO_EVICT, len(self.evict_lanes), ticket))
        return len(self.evict_lanes) - 1

    def _watch(self, lane, kind, receive):
        self.selector.register(lane.socket, selectors.EVENT_READ, (FrameParser(lane, kind), receive))

    def _completed(self, evict_count, command_count, payload):
        if len(payload) % COMPLETION.size:
            raise KvssError(f"{len(payload)} bytes are not a whole number of completions")
        if evict_count < self.evict_count or command_count < self.command_count:
            raise KvssError("a count of finished operations fell")
        self.evict_count, self.command_count = evict_count, command_count
        for fields in COMPLETION.iter_unpack(payload):
            completion = Completion(*fields, evict_count, command_count)
            queue = "evicts" if completion.opcode == EVICT else "commands"
            if completion.sequence not in self.unfinished[queue]:
                raise KvssError(f"a completion for operation {completion.sequence} of the {queue}, which is not open")
            self.unfinished[queue].discard(completion.sequence)
            self.completions[queue][completion.sequence] = completion
            self.order.append((queue, completion.sequence))

    def _arrived(self, sequence, generation, payload):
        if sequence in self.refilled or not 0 < sequence <= self.commands:
            raise KvssError(f"payload for refill {sequence}, which nobody waits for")
        self.refilled[sequence] = (generation, payload)

    def pump(self, what):
        ready = self.selector.select(TIMEOUT_S)
        if not ready:
            raise KvssError(f"nothing came within {TIMEOUT_S} s while waiting for {what}")
        for key, _ in ready:
            parser, receive = key.data
            for frame in parser.read():
                receive(*frame)

    def submit(self, *descriptors):
        """Sends descriptors in one frame and answers their sequences."""
        sequences, entries = [], b""
        for each in descriptors:
            evict = each["opcode"] == EVICT
            queue = "evicts" if evict else "commands"
            if len(self.unfinished[queue]) >= self.window:
                raise KvssError(f"more than {self.window} unfinished operations in the {queue}")
            if evict:
                self.evicts += 1
                self.pieces[self.evicts] = (each["generation"], each["piece"])
            else:
                self.commands += 1
            sequence = self.evicts if evict else self.commands
            self.unfinished[queue].add(sequence)
            sequences.append(sequence)
            entries += DESCRIPTOR.pack(
                each["opcode"], each.get("flags", 0), each["grant"], each["slot"], each["bytes"], each["generation"],
                each["tag"], each.get("after", 0), each.get("user_data", 0), each.get("timeout_us", 0), 0, 0,
            )  # fmt: skip
        self.hio.send_frame(DESCRIPTORS, entries)
        return sequences

    def send_payload(self, sequence, lane=None):
        generation, piece = self.pieces.pop(sequence)
        chosen = self.evict_lanes[sequence % len(self.evict_lanes) if lane is None else lane]
        chosen.send_frame(PAYLOAD, piece, sequence, generation)

    def finished(self, queue, sequence):
        while sequence not in self.completions[queue]:
            self.pump(f"operation {sequence} of the {queue}")
        return self.completions[queue][sequence]

    def refill_result(self, sequence):
        """Status of a refill, and its bytes where it was served. The two come over different lanes, in any order."""
        completion = self.finished("commands", sequence)
        if completion.status == OK:
            while sequence not in self.refilled:
                self.pump(f"the payload of refill {sequence}")
            generation, piece = self.refilled[sequence]
            if generation != completion.generation:
                raise KvssError(f"refill {sequence} brought generation {generation}, not {completion.generation}")
            return completion, piece
        return completion, None

    def close(self):
        self.selector.close()
        for lane in [self.hio, *self.evict_lanes, *self.refill_lanes]:
            lane.close()


# ---- the script


def piece_of(number, length):
    """Bytes that no other piece has."""
    return bytes((number * 37 + at * 11 + (at >> 8)) & 0xFF for at in range(length))


def run(host, port, token):
    saw = {}
    piece_bytes, slots, tag, grant = 3000, 8, 7, 1
    control = Control(host, port)
    hello = {"client": "kvss-python/1"}
    welcome = control.request(HELLO, hello if token is None else {**hello, "token": token}, WELCOME)
    saw["welcome"] = {"shards": len(welcome["shards"]), "epochLetters": len(welcome["epoch"])}

    session = ShardSession(host, port, control, welcome["sessionId"], 0, 16, 2)
    saw["window"] = session.window
    granted = control.request(GRANT, {"shard": 0, "grantId": grant, "slots": slots, "pieceBytes": piece_bytes}, GRANTED)
    saw["granted"] = {"slotBytes": granted["slotBytes"], "bytes": granted["bytes"]}

    generations = iter(range(1, 1000))
    common = {"grant": grant, "bytes": piece_bytes, "tag": tag}

    def evict(slot, **more):
        generation = next(generations)
        piece = piece_of(generation, piece_bytes)
        return {**common, "opcode": EVICT, "slot": slot, "generation": generation, "piece": piece, **more}

    def command(opcode, of, **more):
        """A refill or delete of what an evict stored, after all evicts so far."""
        where = {"slot": of["slot"], "generation": of["generation"]}
        return {**common, "opcode": opcode, "after": session.evicts, **where, **more}

    # Several evicts, over both lanes; payload may come before its descriptor, and in another order.
    first = [evict(slot, user_data=100 + slot) for slot in range(4)]
    session.evict_lanes[0].send_frame(PAYLOAD, first[1]["piece"], 2, first[1]["generation"])
    sequences = session.submit(*first)
    session.pieces.pop(2)
    for sequence, lane in ((4, 1), (1, 1), (3, 0)):
        session.send_payload(sequence, lane)
    done = [session.finished("evicts", sequence) for sequence in sequences]
    saw["evicts"] = [[each.sequence, each.status, each.slot, each.user_data, each.generation] for each in done]
    saw["evictCount"] = session.evict_count

    # A gated refill: sent before the payload of its evict. Evict B finishes meanwhile, so the shard has looked at it.
    a, b = evict(4), evict(5)
    at_a, at_refill, at_b = session.submit(a, command(REFILL, a, after=session.evicts + 1), b)
    session.send_payload(at_b, 0)
    at_done_b = session.finished("evicts", at_b)
    answered_early = at_refill in session.completions["commands"] or at_refill in session.refilled
    session.send_payload(at_a, 1)
    done, piece = session.refill_result(at_refill)
    saw["gated"] = {
        "answeredEarly": answered_early,
        "evictCountAtB": at_done_b.evict_count,
        "status": done.status,
        "sameBytes": piece == a["piece"],
        "afterItsEvict": session.order.index(("evicts", at_a)) < session.order.index(("commands", at_refill)),
        "evictCount": done.evict_count,
    }

    # Every piece comes back, over whichever refill lane.
    at = session.submit(*(command(REFILL, each) for each in [*first, a, b]))
    back = [session.refill_result(sequence) for sequence in at]
    saw["refills"] = [done.status for done, _ in back]
    saw["refilledRight"] = sum(piece == each["piece"] for (_, piece), each in zip(back, [*first, a, b]))

    # Misses.
    (at,) = session.submit(command(REFILL, first[0], tag=tag + 1))
    done, piece = session.refill_result(at)
    saw["wrongTenant"] = {"status": done.status, "bytes": piece}
    newer = evict(first[1]["slot"])
    (at,) = session.submit(newer)
    session.send_payload(at)
    session.finished("evicts", at)
    old, new = session.submit(command(REFILL, first[1]), command(REFILL, newer))
    done, piece = session.refill_result(old)
    fresh, fresh_piece = session.refill_result(new)
    saw["overwritten"] = {
        "status": done.status,
        "bytes": piece,
        "newStatus": fresh.status,
        "newRight": fresh_piece == newer["piece"],
    }
    deleted, after_delete = session.submit(command(DELETE, first[2], flags=SCRUB), command(REFILL, first[2]))
    done, piece = session.refill_result(after_delete)
    saw["deleted"] = {
        "status": session.finished("commands", deleted).status,
        "refillStatus": done.status,
        "bytes": piece,
    }

    # The time of an evict is up before its payload comes; the payload is thrown away and the lane stays in step.
    late, next_one = evict(6, timeout_us=1), evict(7)
    (at,) = session.submit(late)
    done = session.finished("evicts", at)
    session.send_payload(at, 0)
    (at_next,) = session.submit(next_one)
    session.send_payload(at_next, 0)
    next_status = session.finished("evicts", at_next).status
    at_late, at_refill = session.submit(command(REFILL, late), command(REFILL, next_one))
    saw["late"] = {
        "status": done.status,
        "nextStatus": next_status,
        "refillStatus": session.refill_result(at_late)[0].status,
        "nextRight": session.refill_result(at_refill)[1] == next_one["piece"],
    }

    # Operations that make no sense are refused one by one.
    at = session.submit(command(REFILL, a, slot=slots), command(REFILL, a, bytes=1), command(REFILL, a, grant=99))
    saw["refused"] = [session.refill_result(sequence)[0].status for sequence in at]
    stale = evict(0, generation=1)
    (at,) = session.submit(stale)
    saw["staleEvict"] = session.finished("evicts", at).status

    # Another process may carry payload, with a ticket of its own.
    ticket = control.request(TICKET, {"shard": 0, "lifetimeMs": 60_000}, TICKET_ISSUED)["ticket"]
    lane = session.add_evict_lane(ticket)
    other = evict(0)
    (at,) = session.submit(other)
    session.send_payload(at, lane)
    stored = session.finished("evicts", at).status
    (at,) = session.submit(command(REFILL, other))
    saw["ticket"] = {
        "bytes": len(ticket),
        "same": ticket == session.ticket,
        "status": stored,
        "right": session.refill_result(at)[1] == other["piece"],
    }

    stats = control.request(STATS, {}, STATS_REPLY)
    shard = stats["shards"][0]
    saw["stats"] = {
        "sessions": stats["sessions"],
        "taken": int(shard["budgetBytes"]) - int(shard["freeBytes"]),
        "up": stats["uptimeSeconds"] > 0,
    }
    saw["counts"] = {
        "evicts": [session.evicts, session.evict_count],
        "commands": [session.commands, session.command_count],
        "unfinished": sum(len(each) for each in session.unfinished.values()),
    }
    control.request(RELEASE, {"shard": 0, "grantId": grant}, RELEASED)
    shard = control.request(STATS, {}, STATS_REPLY)["shards"][0]
    saw["released"] = int(shard["budgetBytes"]) - int(shard["freeBytes"]) == 0
    control.stream.close()
    session.close()
    return saw


def main(arguments):
    if len(arguments) not in (2, 3) or not arguments[1].isdigit():
        print("usage: kvss_client.py HOST PORT [TOKEN]", file=sys.stderr)
        return 2
    try:
        saw = run(arguments[0], int(arguments[1]), arguments[2] if len(arguments) == 3 else None)
    except KvssError as error:
        print(f"kvss_client: {error}", file=sys.stderr)
        return 1
    print(json.dumps(saw))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
