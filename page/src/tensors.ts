/** Vectors of numbers in wire format: 32-bit floats, little-endian. Pure. */

import type { Tensor } from "./gen/carousel/v1/inference_pb";

/** Returns vectors of one size as a tensor [steps, numbers]. */
export function tensorOf(rows: readonly (readonly number[])[]): { shape: number[]; data: Uint8Array<ArrayBuffer> } {
  const size = rows[0]?.length ?? 0;
  const view = new DataView(new ArrayBuffer(4 * size * rows.length));
  for (const [index, number] of rows.flat().entries()) view.setFloat32(4 * index, number, true);
  return { shape: [rows.length, size], data: new Uint8Array(view.buffer) };
}

/** Returns the numbers of a tensor, row-major, each as `shortest` returns it. */
export function floatsOf(tensor: Tensor): number[] {
  const { buffer, byteOffset, byteLength } = tensor.data;
  const view = new DataView(buffer, byteOffset, byteLength);
  const found = [];
  for (let at = 0; at + 4 <= byteLength; at += 4) found.push(shortest(view.getFloat32(at, true)));
  return found;
}

/** Returns the number with the fewest decimal digits that rounds to a 32-bit float. */
export function shortest(float: number): number {
  for (let digits = 6; digits < 9; digits += 1) {
    const short = Number(float.toPrecision(digits));
    if (Math.fround(short) === float) return short;
  }
  return float;
}
