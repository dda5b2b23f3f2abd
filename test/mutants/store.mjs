// The store: memory, slots and what a shard does with them.

import { model, native, oracle, refusedDescriptors, sim } from './killers.mjs';

const memory = [
  {
    name: 'memory: an object is sealed against shrinking',
    file: 'native/shm/memory_object.cc',
    find: 'F_SEAL_SHRINK | F_SEAL_GROW',
    replace: 'F_SEAL_GROW',
    protects: 'P2: a client that shrinks its grant cannot kill the daemon.',
    killers: [native('nobody can shrink or grow a memory object, not even through a copy of its descriptor')],
  },
  {
    name: 'memory: nobody makes a new writable mapping of what the engine writes',
    file: 'native/shm/memory_object.cc',
    find: 'F_SEAL_FUTURE_WRITE | F_SEAL_SEAL',
    replace: 'F_SEAL_SEAL',
    protects: 'P2: what the engine writes cannot be forged.',
    killers: [native('after ForbidNewWriters an old mapping still writes and no new one can be made')],
  },
  {
    name: 'memory: the status segment is sealed',
    file: 'native/shm/segments.cc',
    find: '  if (Outcome sealed = segments.status_object_.ForbidNewWriters(); !sealed.ok()) return sealed.error();\n',
    replace: '',
    protects: 'P2: a client cannot write completions, counts and revoked.',
    killers: [native('a client cannot write the status segment')],
  },
  {
    name: 'memory: a grant takes no more seals',
    file: 'native/store/column_allocator.cc',
    find: 'object.ok() ? object.value().ForbidMoreSeals() : Outcome(object.error())',
    replace: 'object.ok() ? Outcome(Nothing{}) : Outcome(object.error())',
    protects: 'P2: a client cannot keep its bytes from being scrubbed.',
    killers: [native('a hostile client cannot seal a grant so that Free would leave its bytes')],
  },
  {
    name: 'memory: what is given back is scrubbed',
    file: 'native/store/column_allocator.cc',
    find: '  memory.object.DiscardPages();\n',
    replace: '',
    protects: 'P2: whoever kept a mapping finds zeros in it.',
    killers: [native('a mapping kept by a stopped client reads zeros after Free and nothing of the next owner')],
  },
  {
    name: 'memory: no more is granted than is free',
    file: 'native/store/column_allocator.cc',
    find: 'if (footprint > free) {',
    replace: 'if (false) {',
    protects: 'P3: a grant that was promised does not fail for want of memory.',
    killers: [native('a grant over the budget is refused with both numbers and changes nothing')],
  },
  {
    name: 'memory: a mapping is no longer than its object',
    file: 'native/shm/mapping.cc',
    find: 'bytes == 0 || static_cast<uint64_t>(facts.st_size) < bytes',
    replace: 'bytes == 0',
    protects: 'P3: a daemon that lies about its memory cannot kill the driver.',
    killers: [native('a mapping that is longer than its object is refused')],
  },
  {
    name: 'memory: slots share no cache line',
    file: 'native/store/column_allocator.cc',
    find: 'RoundUp(piece_bytes, proto::kCacheLineBytes)',
    replace: 'piece_bytes',
    protects: 'P1: who writes one piece touches no line of another.',
    killers: [native('slots start on cache lines of their own')],
  },
  {
    name: 'memory: what cannot be overwritten with zeros loses its pages',
    file: 'native/shm/memory_object.cc',
    find: '    if (written <= 0) return ReplacePages(offset, length);\n',
    replace: '    if (written <= 0) return Nothing{};\n',
    protects: 'P2: a client cannot keep its bytes from being scrubbed.',
    killers: [native('Zero leaves no byte where another holder has switched the descriptor to appending')],
  },
  {
    name: 'attach: segments are ready',
    file: 'native/shm/segments.cc',
    find: 'if (status.ready.load(std::memory_order_acquire) != 1) return Mismatch("status segment (not ready)");',
    replace: '',
    protects: 'P1: positions that are not there yet are not believed.',
    killers: [native('attach refuses a segment that is not ready')],
  },
  {
    name: 'attach: ready is published last',
    file: 'native/shm/segments.cc',
    find: 'ready.store(1, std::memory_order_release)',
    replace: 'ready.store(1, std::memory_order_relaxed)',
    protects: 'P1: who sees the flag sees the header.',
    killers: [model('litmus', 3)],
  },
  {
    name: 'attach: ready is read first',
    file: 'native/shm/segments.cc',
    find: 'ready.load(std::memory_order_acquire)',
    replace: 'ready.load(std::memory_order_relaxed)',
    protects: 'P1: who sees the flag sees the header.',
    killers: [model('litmus', 4)],
  },
  {
    name: 'attach: the status segment is of this version',
    file: 'native/shm/segments.cc',
    find: ' || status.version != proto::kProtocolVersion ||',
    replace: ' ||',
    protects: 'P1: two releases do not take each other’s layout for their own.',
    killers: [native('attach refuses another version')],
  },
];

const core = [
  {
    name: 'core: an unknown grant is refused',
    file: 'native/store/shard_session.cc',
    find: '  if (*table == nullptr) return Status::kBadGrant;\n',
    replace: '  if (*table == nullptr) *table = grants_.begin()->second.get();\n',
    protects: 'P2: a descriptor names memory of its own session only.',
    killers: [refusedDescriptors],
  },
  {
    name: 'core: a slot behind the grant is refused',
    file: 'native/store/shard_session.cc',
    find: '  if (descriptor.slot >= (*table)->geometry.slots) return Status::kBadSlot;\n',
    replace: '',
    protects: 'P2: a descriptor names memory of its own grant only.',
    killers: [refusedDescriptors],
  },
  {
    name: 'core: a piece of another length is refused',
    file: 'native/store/shard_session.cc',
    find: '  if (descriptor.piece_bytes != (*table)->geometry.piece_bytes) return Status::kBadLength;\n',
    replace: '',
    protects: 'P2: a piece does not reach into the next slot.',
    killers: [refusedDescriptors],
  },
  {
    name: 'core: flags and reserved fields are refused',
    file: 'native/store/shard_session.cc',
    find: '!known || (descriptor.flags & ~allowed) != 0 || descriptor.reserved0 != 0 ||\n      descriptor.reserved1 != 0',
    replace: '!known',
    protects: 'P1: what a later release means by them is not ignored.',
    killers: [refusedDescriptors],
  },
  {
    name: 'core: an evict waits for its afterCommand',
    file: 'native/store/shard_session.cc',
    find: 'return commands_.finished >= operation.descriptor.after && slot.readers == 0',
    replace: 'return slot.readers == 0',
    protects: 'P1: a slot is not overwritten before what was to be read from it.',
    killers: [native('an evict waits until commandCount has reached its afterCommand')],
  },
  {
    name: 'core: an evict waits for readers of its slot',
    file: 'native/store/shard_session.cc',
    find: 'operation.descriptor.after && slot.readers == 0 &&',
    replace: 'operation.descriptor.after &&',
    protects: 'P1: a slot is not overwritten while a refill or a scrub touches it.',
    killers: [native('an evict into a slot that is being read waits, even where its descriptor names no command')],
  },
  {
    name: 'core: an evict waits for earlier ones into its slot',
    file: 'native/store/shard_session.cc',
    find: '         FinishedWithEarlier(operation.earlier_evict);',
    replace: '         true;',
    protects: 'P1: two evicts do not write one slot at once.',
    killers: [native('evicts into one slot run one after the other, in order')],
  },
  {
    name: 'core: an evict waits for those that one before it had waited for',
    file: 'native/store/shard_session.cc',
    find: '    evict = operation.earlier_evict;\n',
    replace: '    return true;\n',
    protects: 'P1: two evicts do not write one slot at once, also where one between them ran out of time.',
    killers: [native('an evict never runs beside another in its slot, even when one between them ran out of time')],
  },
  {
    name: 'core: the generation of a slot rises',
    file: 'native/store/shard_session.cc',
    find: 'if (operation.descriptor.generation <= slot.generation) {',
    replace: 'if (false) {',
    protects: 'P1: no generation names two contents of a slot.',
    killers: [native('the generation of a slot must rise with every evict')],
  },
  {
    name: 'core: the tenant of a slot is that of its last evict',
    file: 'native/store/shard_session.cc',
    find: '  slot.tenant_tag = operation.descriptor.tenant_tag;\n',
    replace: '  if (slot.tenant_tag == 0) slot.tenant_tag = operation.descriptor.tenant_tag;\n',
    protects: 'P2: a column is refilled under its own tenant only.',
    killers: [native('the tenant of a slot is that of its last evict')],
  },
  {
    name: 'core: a slot that is being written is not stored',
    file: 'native/store/shard_session.cc',
    find: '  slot.state = SlotState::kWriting;\n',
    replace: '  if (slot.state != SlotState::kStored) slot.state = SlotState::kWriting;\n',
    protects: 'P1: half a piece is not served.',
    killers: [native('a refill of a slot that is being written is a miss'), oracle],
  },
  {
    name: 'core: a refill names the generation that is there',
    file: 'native/store/shard_session.cc',
    find:
      'void ShardSession::StartRefill(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns) {\n' +
      '  Slot& slot = table.slots[operation.descriptor.slot];\n' +
      '  if (slot.generation != operation.descriptor.generation) {',
    replace:
      'void ShardSession::StartRefill(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns) {\n' +
      '  Slot& slot = table.slots[operation.descriptor.slot];\n' +
      '  if (false) {',
    protects: 'P1: a column that was overwritten is a miss.',
    killers: [native('a refill that names another generation is a miss and reads nothing')],
  },
  {
    name: 'core: a refill needs a stored slot',
    file: 'native/store/shard_session.cc',
    find:
      '  if (slot.state != SlotState::kStored) return FinishCommand(sequence, Status::kMissEmpty, now_ns);\n' +
      '  if (slot.tenant_tag',
    replace: '  if (slot.tenant_tag',
    protects: 'P1: what is half written, failed or deleted is a miss.',
    killers: [native('a refill of a slot that is being written is a miss')],
  },
  {
    name: 'core: a refill names the tenant that is there',
    file: 'native/store/shard_session.cc',
    find: 'if (slot.tenant_tag != operation.descriptor.tenant_tag)',
    replace: 'if (false)',
    protects: 'P2: no tenant gets the bytes of another.',
    killers: [native('a refill with another tenant is a miss and an alarm, and reads nothing')],
  },
  {
    name: 'core: a delete names the generation that is there',
    file: 'native/store/shard_session.cc',
    find:
      'void ShardSession::StartDelete(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns) {\n' +
      '  Slot& slot = table.slots[operation.descriptor.slot];\n' +
      '  if (slot.generation != operation.descriptor.generation) {',
    replace:
      'void ShardSession::StartDelete(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns) {\n' +
      '  Slot& slot = table.slots[operation.descriptor.slot];\n' +
      '  if (false) {',
    protects: 'P1: a late delete does not take what came after it.',
    killers: [native('a deleted generation does not come back'), oracle],
  },
  {
    name: 'core: what was deleted is a miss at once',
    file: 'native/store/shard_session.cc',
    find:
      '  // Later refills miss from now on; a refill that already runs keeps the bytes until it has finished.\n' +
      '  slot.state = SlotState::kEmpty;\n  --tally_->stored_slots;\n',
    replace: '',
    protects: 'P2: what a tenant had forgotten does not come back.',
    killers: [native('a delete makes later refills miss, and a second delete')],
  },
  {
    name: 'core: a scrub waits for readers',
    file: 'native/store/shard_session.cc',
    find: '  if (slot.readers == 0) return Scrub(sequence, operation, table, now_ns);\n',
    replace: '  return Scrub(sequence, operation, table, now_ns);\n',
    protects: 'P1: bytes are not erased while they are read.',
    killers: [native('a scrub waits for the readers of its slot and runs before an evict that waits for them too')],
  },
  {
    name: 'core: a scrub counts as a reader',
    file: 'native/store/shard_session.cc',
    find: '  ++table.slots[operation.descriptor.slot].readers;\n',
    replace: '',
    also: [
      {
        file: 'native/store/shard_session.cc',
        find: '    case TransferKind::kScrub:\n      --slot.readers;\n',
        replace: '    case TransferKind::kScrub:\n',
      },
    ],
    protects: 'P1: an evict does not write what a scrub is about to erase.',
    killers: [
      native('a scrub waits for the readers of its slot and runs before an evict that waits for them too'),
      oracle,
    ],
  },
  {
    name: 'core: a command waits for its afterEvict',
    file: 'native/store/shard_session.cc',
    find: '    if (waiting && evicts_.finished < operation.descriptor.after) break;\n',
    replace: '',
    protects: 'P1: a refill sees the evicts that came before it.',
    killers: [native('a refill waits until evictCount has reached its afterEvict')],
  },
  {
    name: 'core: a count has no gaps',
    file: 'native/store/shard_session.cc',
    find:
      '  while (window.finished < window.accepted &&\n' +
      '         window.At(window.finished + 1).state == OperationState::kFinished) {\n    ++window.finished;\n  }\n',
    replace: '  if (sequence > window.finished) window.finished = sequence;\n',
    protects: 'P1: a count of n says that the first n have finished.',
    killers: [native('evictCount counts only a gapless run from the first evict')],
  },
  {
    name: 'core: an operation finishes once',
    file: 'native/store/shard_session.cc',
    find: '  sink_->Complete({descriptor.opcode,',
    replace:
      '  if (status != Status::kOk) sink_->Complete({descriptor.opcode, static_cast<uint16_t>(status), descriptor.slot,\n                   descriptor.user_data, sequence, 0});\n  sink_->Complete({descriptor.opcode,',
    protects: 'P3: a completion is about an operation that is under way.',
    killers: [
      native('an evict that waits for its gate ends at its deadline and leaves its slot empty'),
      oracle,
      sim(500),
    ],
  },
  {
    name: 'core: a failed evict leaves its slot empty',
    file: 'native/store/shard_session.cc',
    find: 'slot.state = succeeded && !closed_ ? SlotState::kStored : SlotState::kEmpty;',
    replace: 'slot.state = SlotState::kStored;',
    protects: 'P1: a piece that did not come whole is a miss.',
    killers: [native('a failed evict counts as finished, with its status, and leaves its slot empty')],
  },
  {
    name: 'core: an evict that never ran takes the old piece with it',
    file: 'native/store/shard_session.cc',
    find: '      ForgetOverwritten(operation);\n',
    replace: '',
    protects: 'P1: a slot that the client has written before its evict ran is not served.',
    killers: [native('an evict that waits for its gate ends at its deadline and leaves its slot empty')],
  },
  {
    name: 'core: a grant goes only when nothing is under way',
    file: 'native/store/shard_session.cc',
    find: 'if (!idle()) return Error{Status::kNotAllowed',
    replace: 'if (false) return Error{Status::kNotAllowed',
    protects: 'P2: nothing touches memory that was given back.',
    killers: [native('a grant is only removed while nothing is unfinished, and then knows nothing any more')],
  },
  {
    name: 'core: what runs is asked to stop at the end',
    file: 'native/store/shard_session.cc',
    find: '          port_->Cancel(evict ? TransferKind::kReceive : CommandKind(operation), sequence);\n',
    replace: '',
    protects: 'P2: nothing touches the memory of a session that has ended.',
    killers: [native('closing cancels what waits, asks what runs to stop, and is quiescent when that has ended')],
  },
  {
    name: 'core: an operation without a timeout has one',
    file: 'native/store/shard_session.cc',
    find: 'std::min(descriptor.timeout_us, proto::kMaxOperationTimeoutUs)',
    replace: 'descriptor.timeout_us',
    protects: 'P3: no operation stays for longer than the protocol says.',
    killers: [native('an evict without a timeout waits ten minutes and no longer'), oracle],
  },
  {
    name: 'core: a transfer that is late is asked to stop',
    file: 'native/store/shard_session.cc',
    find: '      port_->Cancel(evict ? TransferKind::kReceive : CommandKind(operation), sequence);\n    } else if',
    replace: '    } else if',
    protects: 'P3: a piece that does not come ends its operation at the deadline.',
    killers: [native('a running transfer is asked to stop at its deadline, once, and still ends the operation itself')],
  },
];

export const store = [...memory, ...core];
