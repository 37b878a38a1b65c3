// Everything that the fragment of the address holds: which network, of what size, its data, how far
// it is trained, and what is shown of it.
const { title, networks, sets, tries } = JSON.parse(byId("network").textContent);
const FREE_STEPS = 100; // of an input that is no sample
const classes = networks[0].layers.at(-1).size, features = networks[0].layers[0].inputs;
const KINDS = [...(sets.length ? ["sample"] : []), "pulses", "constant", "noise"];
const ROWS = ["spikes", "gradient"]; // what is shown of hidden layers: the way forward, and the way back too
// Whole numbers: their settings, and where they lie. A fragment names them so.
const LIMITS = {
  width: [1, 64], depth: [1, 4], weights: [0, 2 ** 32 - 1], updates: [0, 20000],
  sample: [0, Infinity], period: [2, FREE_STEPS], pulse: [1, FREE_STEPS], seed: [0, 2 ** 32 - 1],
};
const HALFLIVES = [0.1, 1000], RATES = [1e-4, 1];

// `width`, `depth` and `halflives` are null, or absent, where they are those of the network as given
const newSettings = () => ({
  net: 0, width: null, depth: null, halflives: {}, weights: 0,
  set: 0, rate: 0.01, updates: 0,
  source: KINDS[0], sample: 0, amplitudes: new Array(Math.min(features, 4)).fill(1), period: 30, pulse: 10, seed: 1,
  rows: 0,
});
let settings = newSettings();
const set = () => sets[settings.set];
const isLegal = {
  rate: (given) => given > 0 && given <= 10,
  halflife: (given) => given >= HALFLIVES[0] && given <= HALFLIVES[1],
  amplitude: (given) => Math.abs(given) <= 1e6,
  whole: (name, given) => Number.isInteger(given) && given >= LIMITS[name][0] && given <= LIMITS[name][1],
};

function fragment() {
  const start = newSettings(), pairs = [];
  if (settings.net) pairs.push(["net", networks[settings.net].name]);
  if (settings.set) pairs.push(["data", set().name]);
  if (settings.source !== start.source) pairs.push(["input", settings.source]);
  if (settings.rate !== start.rate) pairs.push(["rate", settings.rate]);
  if (settings.rows) pairs.push(["rows", ROWS[settings.rows]]);
  for (const [name, shown] of Object.entries(settings.halflives)) pairs.push([`h.${name}`, shown]);
  settings.amplitudes.forEach((value, k) => { if (value !== 1) pairs.push([`in.${k}`, value]); });
  for (const name of Object.keys(LIMITS)) if (settings[name] !== start[name]) pairs.push([name, settings[name]]);
  return String(new URLSearchParams(pairs));
}

// Settings from a fragment; an error for whatever the page would not have written.
function parse(text) {
  const read = newSettings(), pairs = [...new URLSearchParams(text)], given = new Map(pairs);
  const fail = (name) => { throw new Error(name); };
  const number = (name, legal) => {
    const found = Number(given.get(name));
    return given.get(name).trim() !== "" && legal(found) ? found : fail(name);
  };
  const place = (name, list, otherwise) => {
    if (!given.has(name)) return otherwise;
    const found = list.indexOf(given.get(name));
    return found >= 0 ? found : fail(name);
  };
  if (given.size !== pairs.length) fail("twice");
  read.net = place("net", networks.map((each) => each.name), 0);
  read.set = place("data", sets.map((each) => each.name), 0);
  read.source = KINDS[place("input", KINDS, 0)];
  read.rows = place("rows", sets.length ? ROWS : ROWS.slice(0, 1), 0);
  for (const name of given.keys()) {
    if (["net", "data", "input", "rows"].includes(name)) continue;
    if (name === "rate") read.rate = number(name, isLegal.rate);
    else if (name.startsWith("h.") && decaysOf(networks[read.net]).includes(name.slice(2))) read.halflives[name.slice(2)] = number(name, isLegal.halflife);
    else if (/^in\.[0-3]$/.test(name) && name.slice(3) < read.amplitudes.length) read.amplitudes[name.slice(3)] = number(name, isLegal.amplitude);
    else if (Object.hasOwn(LIMITS, name)) read[name] = number(name, (found) => isLegal.whole(name, found));
    else fail(name);
  }
  const grown = read.width !== null || read.depth !== null || read.weights !== 0;
  if (grown && !isRegular(networks[read.net])) fail("width");
  if (!sets.length ? read.updates || read.sample : read.sample >= sets[read.set].labels.length) fail("sample");
  return read;
}
