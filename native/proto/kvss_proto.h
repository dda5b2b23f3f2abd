// Generated from proto/kvss.yaml by `npm run generate`. Do not edit.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvss::proto {

/// Version of every layout in this file. Both sides of a session must speak the same one.
inline constexpr uint16_t kProtocolVersion = 1u;
/// First four bytes of every frame: the ASCII letters KVSS.
inline constexpr uint32_t kFrameMagic = 1397970507u;
/// First four bytes of a submit segment: KVSQ.
inline constexpr uint32_t kSubmitMagic = 1364416075u;
/// First four bytes of a status segment: KVSC.
inline constexpr uint32_t kStatusMagic = 1129535051u;
/// First four bytes of a counters segment: KVSN.
inline constexpr uint32_t kCountersMagic = 1314084427u;
/// First four bytes of a stream connection: KVSL.
inline constexpr uint32_t kLaneMagic = 1280529995u;
/// First four bytes of every frame on a HIO or WIO lane: KVSD.
inline constexpr uint32_t kStreamMagic = 1146312267u;
/// Alignment of slots and of every field that one side writes while the other reads.
inline constexpr uint32_t kCacheLineBytes = 64u;
/// Header and payload of one control frame. A longer frame ends the connection before anything is allocated for it.
inline constexpr uint32_t kMaxFrameBytes = 65536u;
/// File descriptors that one control frame may carry.
inline constexpr uint32_t kMaxFrameDescriptors = 64u;
/// Entries of a submission ring. Rings are powers of two.
inline constexpr uint32_t kMinRingEntries = 8u;
/// Entries of a submission ring.
inline constexpr uint32_t kMaxRingEntries = 8192u;
/// Shards of one daemon.
inline constexpr uint32_t kMaxShards = 64u;
/// Driver sessions of one daemon.
inline constexpr uint32_t kMaxSessions = 256u;
/// Grants of one session on one shard.
inline constexpr uint32_t kMaxGrantsPerSession = 64u;
/// Slots of one grant. The engine keeps 32 bytes of private state a slot.
inline constexpr uint32_t kMaxSlotsPerGrant = 16777216u;
/// Bytes of one piece.
inline constexpr uint32_t kMaxPieceBytes = 1073741824u;
/// WIO lanes of each direction that one session may have on one shard.
inline constexpr uint32_t kMaxWioStreams = 16u;
/// SlotEntries of one slotPage.
inline constexpr uint32_t kMaxSlotsPerPage = 2500u;
/// Longest time that one operation may wait for its gate and its transfer: ten minutes.
inline constexpr uint32_t kMaxOperationTimeoutUs = 600000000u;
/// Tenant policies of one daemon.
inline constexpr uint32_t kMaxPolicies = 10000u;
/// Entries of one policiesPage; each takes less than 200 bytes, so that the frame stays below maxFrameBytes.
inline constexpr uint32_t kMaxPoliciesPerFrame = 256u;

/// What a control frame says. Requests are odd, the answer to a request is the next even number.
enum class FrameType : uint16_t {
  kHello = 1,  ///< Driver to daemon, first frame of a connection: who speaks, and which protocol.
  kWelcome = 2,  ///< Answer to hello: the epoch of the daemon and its shards.
  kAttach = 3,  ///< Open the two queues of this session on one shard.
  kAttached = 4,  ///< Answer to attach. Carries four descriptors: submit segment, status segment, submit wake, completion wake.
  kGrant = 5,  ///< Ask one shard for memory for slots of one piece size.
  kGranted = 6,  ///< Answer to grant. Carries one descriptor: the memory object of the grant.
  kRelease = 7,  ///< Give one grant back.
  kReleased = 8,  ///< Answer to release: the memory has been scrubbed and is free again.
  kStats = 9,  ///< Ask for the counters segments and the state of the shards.
  kStatsReply = 10,  ///< Answer to stats. Carries one descriptor a shard: its counters segment, read-only.
  kAttachStream = 11,  ///< Open the two queues of this session on one shard for lanes over a stream.
  kStreamAttached = 12,  ///< Answer to attachStream: the ticket that opens lanes.
  kTicket = 13,  ///< Ask for a ticket with which another process may open WIO lanes of this session, for a short time.
  kTicketIssued = 14,  ///< Answer to ticket.
  kCarrierHello = 15,  ///< Driver to carrier, first frame of a connection: who speaks.
  kCarrierWelcome = 16,  ///< Answer to carrierHello: the memory of the carrier.
  kCarry = 17,  ///< Ask a carrier to carry the payload of a session on one shard.
  kCarrying = 18,  ///< Answer to carry: the ticket that opens the order lane.
  kDrop = 19,  ///< Ask a carrier to close its lanes of a session on one shard.
  kDropped = 20,  ///< Answer to drop: nothing of it touches the memory of the carrier any more.
  kCompute = 21,  ///< Emulated wafers only: fill places with the state of columns.
  kComputed = 22,  ///< Answer to compute.
  kCheck = 23,  ///< Emulated wafers only: look whether places hold the state of columns.
  kChecked = 24,  ///< Answer to check.
  kPolicies = 25,  ///< Driver to daemon: ask for the tenant policies that changed after a version.
  kPoliciesPage = 26,  ///< Answer to policies: some of them, oldest change first.
  kReport = 27,  ///< Driver to daemon: how its cache does, for stats and metrics.
  kReported = 28,  ///< Answer to report.
  kSlotTable = 29,  ///< Ask what the slots of a grant hold.
  kSlotPage = 30,  ///< Answer to slotTable: some SlotEntries.
  kGoodbye = 31,  ///< The client is about to close, and nothing of it is to be parked.
  kFarewell = 32,  ///< Answer to goodbye.
  kError = 64,  ///< A request was refused (it echoes the requestId), or, with requestId 0, the session is over.
  kDraining = 65,  ///< The daemon is shutting down. Finish what is in flight; send nothing new.
  kPoliciesChanged = 66,  ///< Daemon to driver, unasked: there are tenant policies that the driver has not seen. Not sent again before the driver has asked.
};

/// What a stream connection is for.
enum class LaneKind : uint16_t {
  kControl = 1,  ///< Control frames.
  kHio = 2,  ///< Descriptors to the shard and completions back.
  kWioEvict = 3,  ///< Payload of evicts to the shard.
  kWioRefill = 4,  ///< Payload of refills from the shard.
  kOrder = 5,  ///< From a driver to a carrier: orders, and their acknowledgements back.
};

/// What a frame on a HIO or WIO lane holds.
enum class StreamType : uint16_t {
  kDescriptors = 1,  ///< Descriptors, on HIO lanes to the shard.
  kCompletions = 2,  ///< Completions, on HIO lanes from the shard. requestId is evictCount and generation is commandCount after them.
  kPayload = 3,  ///< One piece, on WIO lanes. requestId is the sequence of the operation in its queue.
  kOrders = 4,  ///< TransferOrders, on order lanes to the carrier.
  kAcks = 5,  ///< TransferAcks, on order lanes from the carrier.
};

/// What a descriptor asks of the shard.
enum class Opcode : uint16_t {
  kEvict = 1,  ///< A piece goes to KVSS. Travels in the evict queue only.
  kRefill = 2,  ///< A piece comes back. Travels in the refill/delete queue only.
  kDelete = 3,  ///< Forget a piece. Travels in the refill/delete queue only.
};

/// How an operation or a request ended. 1 to 31 are outcomes of a healthy store, 32 and above are faults.
enum class Status : uint16_t {
  kOk = 0,  ///< Done.
  kMissEmpty = 1,  ///< Miss: the slot holds no piece (never stored, deleted, or its evict failed).
  kMissOverwritten = 2,  ///< Miss: the slot holds another generation than the one asked for.
  kMissTenant = 3,  ///< Miss and alarm: the generation matches but the tenant tag does not.
  kDeadline = 16,  ///< The time of the operation was up. A refill had no effect, an evict leaves its slot empty, a delete that had begun has forgotten its piece.
  kCancelled = 17,  ///< The session ended before the operation had finished.
  kBadOpcode = 32,  ///< Unknown opcode, an opcode in the wrong queue, or a reserved field that is not zero.
  kBadGrant = 33,  ///< The session has no such grant on this shard.
  kBadSlot = 34,  ///< The slot number is not below the number of slots of the grant.
  kBadLength = 35,  ///< The length is not the piece size of the grant.
  kBadGeneration = 36,  ///< The generation of an evict is not higher than that of the slot.
  kTransferFailed = 37,  ///< The bytes did not arrive or could not be sent. The slot is empty afterwards if it was an evict.
  kBadFrame = 64,  ///< A frame is malformed: magic, length, type or payload.
  kBadVersion = 65,  ///< The other side speaks another protocol version.
  kNotAllowed = 66,  ///< The peer may not do this: its user id is not on the list, or the frame is not valid in this state.
  kUnknownShard = 67,  ///< The daemon has no such shard.
  kNoMemory = 68,  ///< The shard cannot grant that much memory.
  kLimitExceeded = 69,  ///< A limit of the protocol or of the configuration was reached.
  kDraining = 70,  ///< The daemon is shutting down.
  kRingCorrupt = 71,  ///< The client wrote impossible ring positions. The session was ended; no other session is affected.
  kInternal = 72,  ///< The daemon failed to do this. Its log says why.
  kNothingParked = 73,  ///< Nothing is parked that this secret, label and piece size would bring back.
};

/// State of a slot, kept by the engine and never mapped by clients.
enum class SlotState : uint8_t {
  kEmpty = 0,  ///< Holds nothing that may be read.
  kWriting = 1,  ///< An evict is running.
  kStored = 2,  ///< Holds the piece of its generation.
};

/// Bits of Descriptor.flags. Unknown bits are refused with badOpcode.
namespace descriptor_flag {
inline constexpr uint16_t kScrub = 1;  ///< Delete only: overwrite the slot with zeros before the delete completes.
inline constexpr uint16_t kAll = 1;
}  // namespace descriptor_flag

/// Bits of TransferOrder.flags. Unknown bits end the order lane.
namespace order_flag {
inline constexpr uint16_t kWithdraw = 1;  ///< The operation has ended without its bytes: let go of the memory. Acknowledged like the transfer itself, once.
inline constexpr uint16_t kAll = 1;
}  // namespace order_flag

/// Precedes every control frame. On a Unix socket one packet is one frame. The layout never changes.
struct alignas(8) FrameHeader {
  uint32_t magic;  ///< frameMagic
  uint16_t version;  ///< protocolVersion of the sender
  uint16_t type;  ///< FrameType
  uint32_t payload_bytes;  ///< length of the msgpack payload that follows, at most maxFrameBytes - 24
  uint32_t flags;  ///< reserved and zero
  uint64_t request_id;  ///< chosen by the asking side and echoed in the answer; 0 where nothing was asked
};
static_assert(sizeof(FrameHeader) == 24);
static_assert(alignof(FrameHeader) == 8);
static_assert(std::is_standard_layout_v<FrameHeader>);
static_assert(std::is_trivially_copyable_v<FrameHeader>);
static_assert(offsetof(FrameHeader, magic) == 0);
static_assert(offsetof(FrameHeader, version) == 4);
static_assert(offsetof(FrameHeader, type) == 6);
static_assert(offsetof(FrameHeader, payload_bytes) == 8);
static_assert(offsetof(FrameHeader, flags) == 12);
static_assert(offsetof(FrameHeader, request_id) == 16);

/// One operation in a submission ring. The engine reads it once, into private memory.
struct alignas(64) Descriptor {
  uint16_t opcode;  ///< Opcode
  uint16_t flags;  ///< DescriptorFlag
  uint32_t grant_id;  ///< which grant of this session on this shard
  uint32_t slot;  ///< slot within the grant
  uint32_t piece_bytes;  ///< must equal the piece size of the grant
  uint64_t generation;  ///< evict: the new generation, higher than the last one of the slot. refill, delete: the generation meant
  uint64_t tenant_tag;  ///< evict: stamped on the slot. refill: must match the stamp
  uint64_t after;  ///< evict: afterCommand. refill, delete: afterEvict. How many operations of the other queue must have finished first
  uint64_t user_data;  ///< echoed in the completion
  uint32_t timeout_us;  ///< microseconds that the operation may wait, counted from when the engine reads it; 0 means maxOperationTimeoutUs
  uint32_t reserved0;  ///< zero
  uint64_t reserved1;  ///< zero
};
static_assert(sizeof(Descriptor) == 64);
static_assert(alignof(Descriptor) == 64);
static_assert(std::is_standard_layout_v<Descriptor>);
static_assert(std::is_trivially_copyable_v<Descriptor>);
static_assert(offsetof(Descriptor, opcode) == 0);
static_assert(offsetof(Descriptor, flags) == 2);
static_assert(offsetof(Descriptor, grant_id) == 4);
static_assert(offsetof(Descriptor, slot) == 8);
static_assert(offsetof(Descriptor, piece_bytes) == 12);
static_assert(offsetof(Descriptor, generation) == 16);
static_assert(offsetof(Descriptor, tenant_tag) == 24);
static_assert(offsetof(Descriptor, after) == 32);
static_assert(offsetof(Descriptor, user_data) == 40);
static_assert(offsetof(Descriptor, timeout_us) == 48);
static_assert(offsetof(Descriptor, reserved0) == 52);
static_assert(offsetof(Descriptor, reserved1) == 56);

/// How one operation ended. Completions of one queue may come out of order; the counters never do.
struct alignas(32) Completion {
  uint16_t opcode;  ///< Opcode of the operation
  uint16_t status;  ///< Status
  uint32_t slot;  ///< slot of the operation
  uint64_t user_data;  ///< userData of the descriptor
  uint64_t sequence;  ///< position of the operation in its queue, from 1
  uint64_t generation;  ///< generation of the slot after the operation, 0 where there is no such slot
};
static_assert(sizeof(Completion) == 32);
static_assert(alignof(Completion) == 32);
static_assert(std::is_standard_layout_v<Completion>);
static_assert(std::is_trivially_copyable_v<Completion>);
static_assert(offsetof(Completion, opcode) == 0);
static_assert(offsetof(Completion, status) == 2);
static_assert(offsetof(Completion, slot) == 4);
static_assert(offsetof(Completion, user_data) == 8);
static_assert(offsetof(Completion, sequence) == 16);
static_assert(offsetof(Completion, generation) == 24);

/// What a slot holds, as slotPage has it.
struct alignas(8) SlotEntry {
  uint64_t generation;  ///< the highest that an evict into the slot has named; an evict has to name a higher one
  uint64_t tenant_tag;  ///< stamp of the evict of this generation
  uint32_t state;  ///< SlotState
  uint32_t reserved;  ///< zero
};
static_assert(sizeof(SlotEntry) == 24);
static_assert(alignof(SlotEntry) == 8);
static_assert(std::is_standard_layout_v<SlotEntry>);
static_assert(std::is_trivially_copyable_v<SlotEntry>);
static_assert(offsetof(SlotEntry, generation) == 0);
static_assert(offsetof(SlotEntry, tenant_tag) == 8);
static_assert(offsetof(SlotEntry, state) == 16);
static_assert(offsetof(SlotEntry, reserved) == 20);

/// First bytes of a stream connection, from the client.
struct alignas(8) LaneHello {
  uint32_t magic;  ///< laneMagic
  uint16_t version;  ///< protocolVersion
  uint16_t kind;  ///< LaneKind
  uint32_t shard;  ///< index of the shard; 0 for control
  uint32_t stream;  ///< number of the lane among those of its kind, from 0
  uint64_t session_id;  ///< of the session that the lane belongs to; 0 for control
  uint64_t ticket0;  ///< first part of the ticket: 32 random bytes from streamAttached or ticketIssued; zeros for control
  uint64_t ticket1;  ///< second part
  uint64_t ticket2;  ///< third part
  uint64_t ticket3;  ///< fourth part
  uint64_t reserved;  ///< zero
};
static_assert(sizeof(LaneHello) == 64);
static_assert(alignof(LaneHello) == 8);
static_assert(std::is_standard_layout_v<LaneHello>);
static_assert(std::is_trivially_copyable_v<LaneHello>);
static_assert(offsetof(LaneHello, magic) == 0);
static_assert(offsetof(LaneHello, version) == 4);
static_assert(offsetof(LaneHello, kind) == 6);
static_assert(offsetof(LaneHello, shard) == 8);
static_assert(offsetof(LaneHello, stream) == 12);
static_assert(offsetof(LaneHello, session_id) == 16);
static_assert(offsetof(LaneHello, ticket0) == 24);
static_assert(offsetof(LaneHello, ticket1) == 32);
static_assert(offsetof(LaneHello, ticket2) == 40);
static_assert(offsetof(LaneHello, ticket3) == 48);
static_assert(offsetof(LaneHello, reserved) == 56);

/// Answer to LaneHello. Anything but ok is followed by the end of the connection.
struct alignas(8) LaneWelcome {
  uint32_t magic;  ///< laneMagic
  uint16_t version;  ///< protocolVersion
  uint16_t status;  ///< Status
  uint64_t reserved;  ///< zero
};
static_assert(sizeof(LaneWelcome) == 16);
static_assert(alignof(LaneWelcome) == 8);
static_assert(std::is_standard_layout_v<LaneWelcome>);
static_assert(std::is_trivially_copyable_v<LaneWelcome>);
static_assert(offsetof(LaneWelcome, magic) == 0);
static_assert(offsetof(LaneWelcome, version) == 4);
static_assert(offsetof(LaneWelcome, status) == 6);
static_assert(offsetof(LaneWelcome, reserved) == 8);

/// Precedes every frame on a HIO or WIO lane.
struct alignas(8) StreamHeader {
  uint32_t magic;  ///< streamMagic
  uint16_t version;  ///< protocolVersion
  uint16_t type;  ///< StreamType
  uint32_t length;  ///< bytes that follow
  uint32_t checksum;  ///< CRC32C of what follows, or 0 where the sender computes none
  uint64_t request_id;  ///< see StreamType
  uint64_t generation;  ///< payload: generation of the slot
};
static_assert(sizeof(StreamHeader) == 32);
static_assert(alignof(StreamHeader) == 8);
static_assert(std::is_standard_layout_v<StreamHeader>);
static_assert(std::is_trivially_copyable_v<StreamHeader>);
static_assert(offsetof(StreamHeader, magic) == 0);
static_assert(offsetof(StreamHeader, version) == 4);
static_assert(offsetof(StreamHeader, type) == 6);
static_assert(offsetof(StreamHeader, length) == 8);
static_assert(offsetof(StreamHeader, checksum) == 12);
static_assert(offsetof(StreamHeader, request_id) == 16);
static_assert(offsetof(StreamHeader, generation) == 24);

/// What a carrier is to send or to receive for one operation.
struct alignas(8) TransferOrder {
  uint16_t opcode;  ///< Opcode of the operation: evict or refill
  uint16_t flags;  ///< OrderFlag
  uint32_t piece_bytes;  ///< length of the piece
  uint64_t sequence;  ///< position of the operation in its queue
  uint64_t generation;  ///< generation of the slot
  uint32_t place;  ///< where in the memory of the carrier the piece lies or goes
  uint32_t reserved;  ///< zero
};
static_assert(sizeof(TransferOrder) == 32);
static_assert(alignof(TransferOrder) == 8);
static_assert(std::is_standard_layout_v<TransferOrder>);
static_assert(std::is_trivially_copyable_v<TransferOrder>);
static_assert(offsetof(TransferOrder, opcode) == 0);
static_assert(offsetof(TransferOrder, flags) == 2);
static_assert(offsetof(TransferOrder, piece_bytes) == 4);
static_assert(offsetof(TransferOrder, sequence) == 8);
static_assert(offsetof(TransferOrder, generation) == 16);
static_assert(offsetof(TransferOrder, place) == 24);
static_assert(offsetof(TransferOrder, reserved) == 28);

/// A carrier has sent or received the piece of an operation, and touches its memory no more.
struct alignas(8) TransferAck {
  uint16_t opcode;  ///< Opcode of the operation
  uint16_t status;  ///< Status: ok, transferFailed where the bytes are not those that their checksum names, or cancelled where the order was withdrawn
  uint32_t reserved;  ///< zero
  uint64_t sequence;  ///< sequence of the operation
};
static_assert(sizeof(TransferAck) == 16);
static_assert(alignof(TransferAck) == 8);
static_assert(std::is_standard_layout_v<TransferAck>);
static_assert(std::is_trivially_copyable_v<TransferAck>);
static_assert(offsetof(TransferAck, opcode) == 0);
static_assert(offsetof(TransferAck, status) == 2);
static_assert(offsetof(TransferAck, reserved) == 4);
static_assert(offsetof(TransferAck, sequence) == 8);

/// Header of the segment that the client alone writes. The rings follow at the given offsets.
struct alignas(64) SubmitSegment {
  uint32_t magic;  ///< submitMagic
  uint32_t version;  ///< protocolVersion
  uint64_t segment_bytes;  ///< size of the whole segment
  uint32_t ring_entries;  ///< entries of each submission ring, a power of two
  uint32_t evict_ring_offset;  ///< byte offset of the evict ring
  uint32_t command_ring_offset;  ///< byte offset of the refill/delete ring
  uint8_t padding_before_evict_tail[36];
  std::atomic<uint64_t> evict_tail;  ///< descriptors ever published in the evict ring
  uint8_t padding_before_command_tail[56];
  std::atomic<uint64_t> command_tail;  ///< descriptors ever published in the refill/delete ring
  uint8_t padding_before_completion_head[56];
  std::atomic<uint64_t> completion_head;  ///< completions ever consumed
  uint8_t padding_before_client_sleeping[56];
  std::atomic<uint32_t> client_sleeping;  ///< 1 while the client waits for the completion wake
  uint8_t padding_at_end[252];
};
static_assert(sizeof(SubmitSegment) == 512);
static_assert(alignof(SubmitSegment) == 64);
static_assert(std::is_standard_layout_v<SubmitSegment>);
static_assert(offsetof(SubmitSegment, magic) == 0);
static_assert(offsetof(SubmitSegment, version) == 4);
static_assert(offsetof(SubmitSegment, segment_bytes) == 8);
static_assert(offsetof(SubmitSegment, ring_entries) == 16);
static_assert(offsetof(SubmitSegment, evict_ring_offset) == 20);
static_assert(offsetof(SubmitSegment, command_ring_offset) == 24);
static_assert(offsetof(SubmitSegment, evict_tail) == 64);
static_assert(offsetof(SubmitSegment, command_tail) == 128);
static_assert(offsetof(SubmitSegment, completion_head) == 192);
static_assert(offsetof(SubmitSegment, client_sleeping) == 256);

/// Header of the segment that the engine alone writes; the client can map it only for reading.
struct alignas(64) StatusSegment {
  uint32_t magic;  ///< statusMagic
  uint32_t version;  ///< protocolVersion
  uint64_t segment_bytes;  ///< size of the whole segment
  uint32_t completion_entries;  ///< entries of the completion ring, a power of two
  uint32_t completion_ring_offset;  ///< byte offset of the completion ring
  std::atomic<uint32_t> ready;  ///< published last: 1 once everything before it is valid
  uint8_t padding_before_evict_head[36];
  std::atomic<uint64_t> evict_head;  ///< descriptors ever taken from the evict ring
  uint8_t padding_before_command_head[56];
  std::atomic<uint64_t> command_head;  ///< descriptors ever taken from the refill/delete ring
  uint8_t padding_before_completion_tail[56];
  std::atomic<uint64_t> completion_tail;  ///< completions ever published
  uint8_t padding_before_evict_count[56];
  std::atomic<uint64_t> evict_count;  ///< evicts that have finished, in order, failed ones included
  std::atomic<uint64_t> command_count;  ///< refills and deletes that have finished, in order
  uint8_t padding_before_engine_sleeping[48];
  std::atomic<uint32_t> engine_sleeping;  ///< 1 while the engine waits for the submit wake
  uint8_t padding_before_revoked[60];
  std::atomic<uint32_t> revoked;  ///< 1 before the memory of the session is taken away; who reads a slot in place looks here after reading
  uint8_t padding_at_end[124];
};
static_assert(sizeof(StatusSegment) == 512);
static_assert(alignof(StatusSegment) == 64);
static_assert(std::is_standard_layout_v<StatusSegment>);
static_assert(offsetof(StatusSegment, magic) == 0);
static_assert(offsetof(StatusSegment, version) == 4);
static_assert(offsetof(StatusSegment, segment_bytes) == 8);
static_assert(offsetof(StatusSegment, completion_entries) == 16);
static_assert(offsetof(StatusSegment, completion_ring_offset) == 20);
static_assert(offsetof(StatusSegment, ready) == 24);
static_assert(offsetof(StatusSegment, evict_head) == 64);
static_assert(offsetof(StatusSegment, command_head) == 128);
static_assert(offsetof(StatusSegment, completion_tail) == 192);
static_assert(offsetof(StatusSegment, evict_count) == 256);
static_assert(offsetof(StatusSegment, command_count) == 264);
static_assert(offsetof(StatusSegment, engine_sleeping) == 320);
static_assert(offsetof(StatusSegment, revoked) == 384);

/// Live figures of one shard, written by its engine alone. Readable even when the daemon's event loop hangs.
struct alignas(64) CountersSegment {
  uint32_t magic;  ///< countersMagic
  uint32_t version;  ///< protocolVersion
  uint32_t shard;  ///< index of the shard
  uint8_t padding_before_heartbeat[52];
  std::atomic<uint64_t> heartbeat;  ///< rises with every turn of the engine's loop
  std::atomic<uint64_t> sessions;  ///< sessions attached now
  std::atomic<uint64_t> evicts;  ///< evicts stored
  std::atomic<uint64_t> evict_faults;  ///< evicts that finished with another status than ok
  std::atomic<uint64_t> evict_bytes;  ///< bytes of stored pieces
  std::atomic<uint64_t> refills;  ///< refills served
  std::atomic<uint64_t> refill_misses;  ///< refills that found the slot empty or overwritten
  std::atomic<uint64_t> refill_faults;  ///< refills that ended with a fault
  std::atomic<uint64_t> refill_bytes;  ///< bytes of served pieces
  std::atomic<uint64_t> deletes;  ///< pieces forgotten on request
  std::atomic<uint64_t> delete_misses;  ///< deletes that found nothing to forget
  std::atomic<uint64_t> tenant_alarms;  ///< refills that named another tenant than the slot's
  std::atomic<uint64_t> deadlines;  ///< operations that ran out of time
  std::atomic<uint64_t> gated_evicts;  ///< evicts that had to wait for a command or a reader
  std::atomic<uint64_t> gated_commands;  ///< commands that had to wait for an evict
  std::atomic<uint64_t> scrubbed_bytes;  ///< bytes zeroed by deletes
  std::atomic<uint64_t> ring_faults;  ///< sessions ended because their ring positions were impossible
  std::atomic<uint64_t> sleeps;  ///< times the engine went to sleep
  std::atomic<uint64_t> stored_slots;  ///< slots that hold a piece now
  uint8_t padding_before_evict_latency[40];
  std::atomic<uint64_t> evict_latency[24];  ///< evicts by time from read to finished; bucket i counts less than 2^(i+7) ns, the last one everything longer
  std::atomic<uint64_t> refill_latency[24];  ///< likewise for refills
  uint8_t padding_at_end[384];
};
static_assert(sizeof(CountersSegment) == 1024);
static_assert(alignof(CountersSegment) == 64);
static_assert(std::is_standard_layout_v<CountersSegment>);
static_assert(offsetof(CountersSegment, magic) == 0);
static_assert(offsetof(CountersSegment, version) == 4);
static_assert(offsetof(CountersSegment, shard) == 8);
static_assert(offsetof(CountersSegment, heartbeat) == 64);
static_assert(offsetof(CountersSegment, sessions) == 72);
static_assert(offsetof(CountersSegment, evicts) == 80);
static_assert(offsetof(CountersSegment, evict_faults) == 88);
static_assert(offsetof(CountersSegment, evict_bytes) == 96);
static_assert(offsetof(CountersSegment, refills) == 104);
static_assert(offsetof(CountersSegment, refill_misses) == 112);
static_assert(offsetof(CountersSegment, refill_faults) == 120);
static_assert(offsetof(CountersSegment, refill_bytes) == 128);
static_assert(offsetof(CountersSegment, deletes) == 136);
static_assert(offsetof(CountersSegment, delete_misses) == 144);
static_assert(offsetof(CountersSegment, tenant_alarms) == 152);
static_assert(offsetof(CountersSegment, deadlines) == 160);
static_assert(offsetof(CountersSegment, gated_evicts) == 168);
static_assert(offsetof(CountersSegment, gated_commands) == 176);
static_assert(offsetof(CountersSegment, scrubbed_bytes) == 184);
static_assert(offsetof(CountersSegment, ring_faults) == 192);
static_assert(offsetof(CountersSegment, sleeps) == 200);
static_assert(offsetof(CountersSegment, stored_slots) == 208);
static_assert(offsetof(CountersSegment, evict_latency) == 256);
static_assert(offsetof(CountersSegment, refill_latency) == 448);

}  // namespace kvss::proto
