/** Vectors on their way to a session: one call at a time, and no more waiting than a few seconds of them. Knows no elements. */

import type { Session } from "./session";
import { NUM_TOGETHER } from "./steps";

/** Feeds a session. most: vectors that may wait; marked: vectors from one mark to the next. */
export class Feeding {
  /** Vectors that were left out. */
  numDropped = 0;
  private waiting: number[][] = [];
  private running: Promise<void> | null = null;
  private failure: unknown = null;

  constructor(
    private readonly session: Session,
    private readonly most: number,
    private readonly marked: number,
  ) {}

  /** Feeds vectors as soon as those before them are. The oldest ones that wait are left out where there are too many.
   * Throws what went wrong with those before. */
  push(vectors: number[][]): void {
    if (this.failure !== null) throw this.failure;
    this.waiting.push(...vectors);
    this.numDropped += this.waiting.splice(0, this.waiting.length - this.most).length;
    this.running ??= this.run().finally(() => (this.running = null));
  }

  /** Waits until all are fed. Throws what went wrong. */
  async end(): Promise<void> {
    await this.running;
    if (this.failure !== null) throw this.failure;
  }

  /** Feeds vectors, and a mark where one is due. */
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
