/** Runs in the browser's audio thread: sends incoming sound to the page, in blocks of one channel. */

import { Resampler } from "./resampling";

/** Options of the node. rate: the wanted samples per second. size: the samples in a block. */
export interface CutOptions {
  rate: number;
  size: number;
}

declare const sampleRate: number;
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, made: new (options: { processorOptions: CutOptions }) => object): void;

class Cutter extends AudioWorkletProcessor {
  private readonly resampler: Resampler;
  private readonly size: number;
  private block: Float32Array<ArrayBuffer>;
  private filled = 0;

  constructor({ processorOptions: { rate, size } }: { processorOptions: CutOptions }) {
    super();
    this.resampler = new Resampler(sampleRate, rate);
    this.size = size;
    this.block = new Float32Array(size);
  }

  process([channels]: Float32Array[][]): boolean {
    const [channel] = channels ?? []; // the node mixes all channels into one
    if (channel) this.resampler.add(channel, (sample) => this.add(sample));
    return true;
  }

  private add(sample: number): void {
    this.block[this.filled] = sample;
    this.filled += 1;
    if (this.filled < this.size) return;
    this.port.postMessage(this.block, [this.block.buffer]);
    this.block = new Float32Array(this.size);
    this.filled = 0;
  }
}

registerProcessor("cutter", Cutter);
