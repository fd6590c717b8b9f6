/** Feeds vectors to a session: one call at a time, with a limit on the vectors that wait. Knows no HTML elements. */

import type { Session } from "./session";
import { NUM_TOGETHER } from "./steps";

/** Feeds one session. most: the most vectors that may wait. marked: the number of vectors from one mark to the next. */
export class Feeding {
  /** The number of vectors that were dropped. */
  numDropped = 0;
  private waiting: number[][] = [];
  private running: Promise<void> | null = null;
  private failure: unknown = null;

  constructor(
    private readonly session: Session,
    private readonly most: number,
    private readonly marked: number,
  ) {}

  /** Feeds vectors after those that already wait. If too many wait, drops the oldest. Throws the error of an earlier
   * feed. */
  push(vectors: number[][]): void {
    if (this.failure !== null) throw this.failure;
    this.waiting.push(...vectors);
    this.numDropped += this.waiting.splice(0, this.waiting.length - this.most).length;
    this.running ??= this.run().finally(() => (this.running = null));
  }

  /** Waits until all vectors are fed. Throws the error of a feed. */
  async end(): Promise<void> {
    await this.running;
    if (this.failure !== null) throw this.failure;
  }

  /** Feeds vectors at once, with a mark if one is due. */
  async feed(vectors: number[][]): Promise<void> {
    const { session } = this;
    const end = session.position + vectors.length;
    await session.feed(vectors, "you", end - (session.marks.at(-1) ?? 0) >= this.marked);
  }

  private async run(): Promise<void> {
    try {
      while (this.waiting.length > 0 && this.session.isOpen) await this.feed(this.waiting.splice(0, NUM_TOGETHER));
    } catch (error) {
      this.failure = error;
    }
  }
}
