import { type DriverReport, Payload, type PayloadOf } from '../proto/frames.js';
import type { ControlClient } from './control_client.js';

/** Sends reports to one daemon, one at a time. */
export class ReportSender {
  #next: DriverReport | undefined;
  #sending = false;

  constructor(
    private readonly client: ControlClient,
    private readonly welcome: PayloadOf<'welcome'>,
  ) {}

  /** Returns at once. Whatever happens to the report, nothing else does. */
  send(report: DriverReport): void {
    // A daemon that does not know the frame would end the session over it.
    if (this.welcome.reports !== true) return;
    // So would a report that is none, and with the session goes all that it has stored.
    if (!Payload.report.safeParse(report).success) return;
    this.#next = report;
    if (!this.#sending) void this.#send();
  }

  async #send(): Promise<void> {
    this.#sending = true;
    while (this.#next && !this.client.ended) {
      const report = this.#next;
      this.#next = undefined;
      try {
        await this.client.request('report', report, 'reported');
      } catch {
        // It is only a report.
      }
    }
    this.#sending = false;
  }
}
