// Inputs over time: pulses, noise, a constant, or what a hand has drawn.
const ONSET = 10; // the first step of pulses and of the constant

// Uniform numbers from a seed: mulberry32.
function uniformsOf(seed) {
  let word = seed >>> 0;
  return () => {
    word = (word + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(word ^ (word >>> 15), word | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Normal numbers, of Box and Muller.
function noise(seed, steps) {
  const uniform = uniformsOf(seed);
  return Array.from({ length: steps }, () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

function inputOf({ kind, amplitude, period, width, seed, drawn }, steps) {
  if (kind === "drawn") return drawn;
  if (kind === "noise") return noise(seed, steps).map((n) => amplitude * n);
  return Array.from({ length: steps }, (_, t) =>
    t < ONSET || (kind === "pulses" && (t - ONSET) % period >= width) ? 0 : amplitude);
}
