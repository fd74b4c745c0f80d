// Interpolation between two images' noise and sentence embeddings.

/** On the arc from `start` to `end`, with the length changing evenly; both ends are exact. */
export function slerp(start, end, share) {
  if (share <= 0 || share >= 1) return share <= 0 ? start : end;
  const a = Float64Array.from(start);
  const b = Float64Array.from(end);
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const lengths = [Math.sqrt(dot(a, a)), Math.sqrt(dot(b, b))];
  const both = lengths[0] * lengths[1];
  const angle = both ? Math.acos(Math.min(1, Math.max(-1, dot(a, b) / both))) : 0;
  if (Math.sin(angle) < 1e-6) {
    return Float32Array.from(a, (value, i) => (1 - share) * value + share * b[i]);
  }
  const weights = [Math.sin((1 - share) * angle) / lengths[0], Math.sin(share * angle) / lengths[1]];
  const length = (1 - share) * lengths[0] + share * lengths[1];
  const scale = length / Math.sin(angle);
  return Float32Array.from(a, (value, i) => (weights[0] * value + weights[1] * b[i]) * scale);
}
