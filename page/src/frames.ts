/** Converts sound to the vectors that a model's steps read. Pure. */

import type { ModelInfo } from "./gen/carousel/v1/models_pb";

/** How a model reads sound. rate: samples per second. size: samples in a step. numbers: the size of a vector. start: the
 * place of the first sample in a vector. */
export interface Layout {
  rate: number;
  size: number;
  numbers: number;
  start: number;
}

/** Returns the layout of a model; null when it does not read sound, or reads other inputs too. */
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

/** Returns the vectors of samples. Zeros fill the last vector. */
export function vectorsOf(samples: Float32Array, layout: Layout): number[][] {
  const found = [];
  for (let at = 0; at < samples.length; at += layout.size) {
    const vector = new Array<number>(layout.numbers).fill(0);
    samples.subarray(at, at + layout.size).forEach((sample, index) => (vector[layout.start + index] = sample));
    found.push(vector);
  }
  return found;
}

/** Returns the level of sound, from 0 for silence (-60 dB or less) to 1. */
export function loudness(samples: ArrayLike<number>): number {
  let sum = 0;
  for (let at = 0; at < samples.length; at += 1) sum += (samples[at] ?? 0) ** 2;
  const decibels = 10 * Math.log10(sum / Math.max(1, samples.length) + 1e-12);
  return Math.max(0, Math.min(1, 1 + decibels / 60));
}

/** Returns the number of steps in a time, 1 or more. */
export function stepsIn({ rate, size }: Pick<Layout, "rate" | "size">, seconds: number): number {
  return Math.max(1, Math.ceil((seconds * rate) / size));
}
