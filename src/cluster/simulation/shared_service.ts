import type { Clock } from '../../common/clock.js';

/**
 * Work that is done alike and at once: decodes of a job, compilers on a node, flows over the same links. Each piece of work
 * proceeds at the same rate, which whoever shares out the resource sets from outside.
 *
 * What one piece gets done while it is there is the same for all, so one number counts it: work that comes is finished when
 * that number has risen by its amount. A change of the rate costs the same however much work there is.
 */
export class SharedService<Work> {
  #done = 0;
  #at: number;
  #rate = 0;
  /** By the number at which each is finished, rising; what came first is first among equals. */
  readonly #queue: { readonly end: number; readonly work: Work }[] = [];
  #cancel: (() => void) | undefined;

  constructor(
    private readonly clock: Clock,
    private readonly onFinish: (work: Work) => void,
  ) {
    this.#at = clock.now();
  }

  /** How many pieces of work there are. */
  get count(): number {
    return this.#queue.length;
  }

  /** Adds a piece of work; `amount` in units of the rate times milliseconds. */
  add(amount: number, work: Work): void {
    this.#proceed();
    // What was done while nobody was there counts for nobody, and large numbers are less exact.
    if (this.#queue.length === 0) this.#done = 0;
    const end = this.#done + amount;
    const after = this.#queue.findIndex((each) => each.end > end);
    this.#queue.splice(after === -1 ? this.#queue.length : after, 0, { end, work });
    this.#plan();
  }

  /** How much of each piece is done in a millisecond from now on. */
  setRate(rate: number): void {
    if (rate === this.#rate) return;
    this.#proceed();
    this.#rate = rate;
    this.#plan();
  }

  #proceed(): void {
    const now = this.clock.now();
    this.#done += (now - this.#at) * this.#rate;
    this.#at = now;
  }

  #plan(): void {
    this.#cancel?.();
    const [next] = this.#queue;
    if (!next || this.#rate === 0) return;
    this.#cancel = this.clock.schedule((next.end - this.#done) / this.#rate, () => this.#finish(next.end));
  }

  #finish(end: number): void {
    this.#proceed();
    // Rounding must not leave a piece that is all but finished.
    this.#done = Math.max(this.#done, end);
    const finished = this.#queue.filter((each) => each.end <= this.#done);
    this.#queue.splice(0, finished.length);
    this.#plan();
    for (const { work } of finished) this.onFinish(work);
  }
}
