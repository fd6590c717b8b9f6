/** How sound becomes the vectors that a model's steps read. Pure. */

import type { ModelInfo } from "./gen/carousel/v1/models_pb";

/** Of a model of sound. rate: samples a second; size: samples of a step; numbers: of the vector, in which the samples
 * begin at `start`. */
export interface Layout {
  rate: number;
  size: number;
  numbers: number;
  start: number;
}

/** Where sound goes in a model's vectors; null for a model that reads something else, or something beside it. */
export function layoutOf({ sampleRate, featureSize, inputs }: ModelInfo): Layout | null {
  if (sampleRate === 0) return null;
  const layout: Layout = { rate: sampleRate, size: featureSize, numbers: featureSize, start: 0 };
  let [place, numSounds] = [0, 0];
  for (const { shape, isEnd } of inputs) {
    const size = shape.reduce((product, axis) => product * axis, 1);
    if (!isEnd) {
      Object.assign(layout, { size, start: place });
      numSounds += 1;
    }
    place += size;
  }
  return numSounds > 1 ? null : layout;
}

/** The vectors of samples. Zeros fill the last one up. */
export function vectorsOf(samples: Float32Array, layout: Layout): number[][] {
  const found = [];
  for (let at = 0; at < samples.length; at += layout.size) {
    const vector = new Array<number>(layout.numbers).fill(0);
    samples.subarray(at, at + layout.size).forEach((sample, index) => (vector[layout.start + index] = sample));
    found.push(vector);
  }
  return found;
}

/** How loud sound is, from 0 for silence (-60 dB or less) to 1. */
export function loudness(samples: ArrayLike<number>): number {
  let sum = 0;
  for (let at = 0; at < samples.length; at += 1) sum += (samples[at] ?? 0) ** 2;
  const decibels = 10 * Math.log10(sum / Math.max(1, samples.length) + 1e-12);
  return Math.max(0, Math.min(1, 1 + decibels / 60));
}

/** How many steps are so many seconds, 1 or more. */
export function stepsIn({ rate, size }: Pick<Layout, "rate" | "size">, seconds: number): number {
  return Math.max(1, Math.ceil((seconds * rate) / size));
}
