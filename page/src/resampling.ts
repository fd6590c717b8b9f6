/** Converts sound to another sample rate. Pure. */

/** Converts samples from one rate to another. Each new sample is the mean of its time span. */
export class Resampler {
  private readonly width: number;
  private sum = 0;
  private filled = 0;

  /** from, to: samples per second. */
  constructor(from: number, to: number) {
    this.width = from / to;
  }

  /** Adds samples. Calls `give` with each new sample that is complete. */
  add(samples: Float32Array, give: (sample: number) => void): void {
    if (this.width === 1) samples.forEach(give);
    else for (const sample of samples) this.spread(sample, give);
  }

  private spread(sample: number, give: (sample: number) => void): void {
    for (let left = 1; left > 1e-9; ) {
      const part = Math.min(left, this.width - this.filled);
      this.sum += part * sample;
      this.filled += part;
      left -= part;
      if (this.width - this.filled > 1e-9) continue;
      give(this.sum / this.width);
      this.sum = this.filled = 0;
    }
  }
}
