import type { CompletionHandler, LinkRequest, OperationBatch, PlaceMemory, ShardLink } from '../../src/links/link.js';
import { Opcode, Status } from '../../src/proto/generated.js';
import type { SimulatedBox, SimulatedLink } from './simulated_link.js';

/**
 * A simulated shard whose bytes travel: places are memory of their own, of the link or of the runtime. What is evicted is
 * read from its place when the shard is given the descriptor; what is refilled lies at its place when the driver hears of it.
 */
class TravellingLink implements ShardLink {
  readonly inPlace = false;
  readonly places: number;
  readonly #memory: PlaceMemory;
  readonly #refills = new Map<number, OperationBatch>();
  #moved = 0;

  constructor(
    private readonly shard: SimulatedLink,
    { memory }: LinkRequest,
    places: number,
  ) {
    const strideBytes = shard.pieceBytes;
    this.#memory = memory ?? { memory: new ArrayBuffer(places * strideBytes), strideBytes, places };
    this.places = this.#memory.places;
  }

  get slots(): number {
    return this.shard.slots;
  }

  get pieceBytes(): number {
    return this.shard.pieceBytes;
  }

  get onReady(): () => void {
    return this.shard.onReady;
  }

  set onReady(onReady: () => void) {
    this.shard.onReady = onReady;
  }

  piece(place: number): Uint8Array {
    if (!(place >= 0 && place < this.places)) throw new Error(`place ${place} of ${this.places}`);
    return new Uint8Array(this.#memory.memory, place * this.#memory.strideBytes, this.pieceBytes);
  }

  payloadBytes(): number {
    return this.#moved;
  }

  intact(): boolean {
    return this.shard.intact();
  }

  submit(batch: OperationBatch, from: number): number {
    // Nobody else has the slots of a batch, also of what the queue has no room for as yet.
    for (let item = from; batch.opcode === Opcode.evict && item < batch.length; item += 1) {
      this.shard.piece(batch.slots[item] as number).set(this.piece(batch.places[item] as number));
    }
    if (batch.opcode === Opcode.refill) this.#refills.set(batch.id, batch);
    const count = this.shard.submit(batch, from);
    if (batch.opcode === Opcode.evict) this.#moved += count * this.pieceBytes;
    return count;
  }

  poll(handler: CompletionHandler): number {
    return this.shard.poll((batchId, item, status) => {
      const place = this.#refills.get(batchId)?.places[item];
      if (place !== undefined && status === Status.ok) {
        const operation = this.shard.commands.find((other) => other.batchId === batchId && other.item === item);
        this.piece(place).set(operation?.bytes ?? []);
        this.#moved += this.pieceBytes;
      }
      handler(batchId, item, status);
    });
  }

  arm(): boolean {
    return this.shard.arm();
  }
}

/** Reaches the daemons of a box over links whose bytes travel. `places`: of each shard, for bytes on their way. */
export function travelling(box: SimulatedBox, places: number): SimulatedBox['connector'] {
  return async (address, deadlineMs) => {
    const connection = await box.connector(address, deadlineMs);
    const openLink = connection.openLink.bind(connection);
    connection.openLink = async (request) => {
      const link = (await openLink(request)) as SimulatedLink;
      return new TravellingLink(link, request, Math.min(places, link.slots));
    };
    return connection;
  };
}
