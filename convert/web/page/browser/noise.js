// The noise of an image: SHA-256 of seed, index and prompt keys a Philox generator, whose integers become
// normal values by the Box-Muller transform. The same values as the Python runtime's, to the bit.

import { sha256 } from "./sha256.js";

const MASK = (1n << 64n) - 1n;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const WEYL = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];
const ROUNDS = 10;

/** Four 64-bit integers of a counter: Philox4x64-10. */
function philox(counter, key) {
  let [a, b, c, d] = [counter, 0n, 0n, 0n];
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round += 1) {
    const first = MULTIPLIERS[0] * a;
    const second = MULTIPLIERS[1] * c;
    [a, b, c, d] = [
      (second >> 64n) ^ b ^ k0,
      second & MASK,
      (first >> 64n) ^ d ^ k1,
      first & MASK,
    ];
    k0 = (k0 + WEYL[0]) & MASK;
    k1 = (k1 + WEYL[1]) & MASK;
  }
  return [a, b, c, d];
}

/**
 * @param {bigint} seed 0 to 2**63 - 1
 * @param {string} prompt as the user wrote it
 * @param {number} index which image of the prompt
 * @param {number} size length of the vector
 * @returns {Float32Array} from N(0,1)
 */
export function drawNoise(seed, prompt, index, size) {
  const digest = new DataView(sha256(new TextEncoder().encode(`${seed}/${index}/${prompt}`)).buffer);
  const key = [digest.getBigUint64(0, true), digest.getBigUint64(8, true)];
  const uniform = [];
  for (let counter = 1n; uniform.length < size + 1; counter += 1n) {
    for (const integer of philox(counter, key)) {
      uniform.push((Number(integer >> 11n) + 1) * 2 ** -53); // (0,1]: the logarithm must not meet zero
    }
  }
  const noise = new Float32Array(size);
  for (let i = 0; i < size; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform[i]));
    const angle = 2 * Math.PI * uniform[i + 1];
    noise[i] = radius * Math.cos(angle);
    if (i + 1 < size) noise[i + 1] = radius * Math.sin(angle);
  }
  return noise;
}

/** Truncation: noise scaled toward its mean; psi 1 leaves it as it is. */
export function truncate(noise, psi) {
  return psi === 1 ? noise : noise.map((value) => value * Math.fround(psi));
}
