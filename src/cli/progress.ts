/** A line on the terminal that keeps up with long work. Nothing where standard error is no terminal. */
export class Progress {
  readonly #timer: NodeJS.Timeout | undefined;
  readonly #visible = process.stderr.isTTY === true;

  constructor(describe: () => string) {
    if (!this.#visible) return;
    this.#timer = setInterval(() => process.stderr.write(`\r\x1b[K${describe()}`), 200);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
    if (this.#visible) process.stderr.write('\r\x1b[K');
  }
}
