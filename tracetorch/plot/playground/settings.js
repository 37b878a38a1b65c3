// Everything that the fragment of the address holds: which neuron, its values, choices and input,
// and what is differentiated.
const { title, neurons, tries, pairs } = JSON.parse(byId("playground").textContent);
const HALFLIVES = [0.1, 1000]; // ends of the sliders of decays, in steps
const INPUTS = ["pulses", "noise", "constant", "drawn"];

const LATEST = 60; // steps by which the input of the second neuron may be later, or earlier

const newSettings = () => ({
  // of each neuron: which one, and the values, choices and input that were changed, by the neuron or
  // by the family of the twelve layers
  sides: [{ neuron: 0, changed: {} }, { neuron: 0, changed: {} }],
  shown: 0, // the neuron whose states and controls are shown
  pair: null, // or the synapses between the two, and by how many steps the second input is later
  gradients: false, // whether they are shown
  target: { of: "output", step: 100, all: true },
});
let settings = newSettings();

const side = () => settings.sides[settings.shown];
const current = () => neurons[side().neuron];
const places = (of) => of.pair ? of.sides.map((each) => each.neuron) : [of.sides[of.shown].neuron];
const stepsOf = (of) => Math.max(...places(of).map((place) => neurons[place].steps));
const stepCount = () => stepsOf(settings);
// what is read of one of the neurons, whichever is shown
function onSide(place, read) {
  const { shown } = settings;
  settings.shown = place;
  try { return read(); } finally { settings.shown = shown; }
}
const groupOf = (neuron) => neuron.letters ? "family" : `neuron ${neuron.label}`;
const changes = () => side().changed[groupOf(current())] ??= { values: {}, choices: {}, input: null };
// the input at which a neuron shows what it is for, until another is chosen
const input = () => changes().input ?? current().input;
const setInput = (part) => { changes().input = { ...input(), ...part }; };
// the input at every step; that of the second neuron may be later
function inputs() {
  const steps = stepCount(), late = settings.pair && settings.shown && isTimed(input()) ? settings.pair.lag : 0;
  const list = inputOf(input(), steps + Math.max(0, -late));
  return Array.from({ length: steps }, (_, t) => list[t - late] ?? 0);
}
const isTimed = ({ kind }) => kind === "pulses" || kind === "constant";

// What a slider and its field show: the half-life of a decay, the magnitude of a threshold.
const shownOf = (param, value) => param.kind === "decay" ? -Math.LN2 / Math.log(value)
  : param.kind === "negative" ? -value : value;
const valueOf = (param, shown) => param.kind === "decay" ? Math.exp(-Math.LN2 / shown)
  : param.kind === "negative" ? -shown : shown;
const isLegal = (param, shown) => Number.isFinite(shown) && (param.kind === "weight" || shown > 0)
  && Number.isFinite(valueOf(param, shown)) && (!["decay", "fraction"].includes(param.kind) || (valueOf(param, shown) > 0 && valueOf(param, shown) < 1));
const changedOf = (param) => changes().values[`${param.kind} ${param.name}`];
const shown = (param) => changedOf(param) ?? round(shownOf(param, param.value));
const value = (param) => changedOf(param) === undefined ? param.value : valueOf(param, changedOf(param));
const choiceOf = (choice) => changes().choices[choice.name] ?? choice.index;

// The Python that makes the neuron, or both and what is between them.
const literal = (number) => String(round(number, 7));
function python() {
  if (!settings.pair) return constructor("neuron", current().call.fixed);
  const { w12, w21 } = settings.pair, made = ["first", "second"].map((name, k) => onSide(k, () => constructor(name, current().call.alone)));
  return [
    ...made, "synapses = torch.nn.Linear(2, 2, bias=False)",
    `synapses.weight.data = torch.tensor([[0.0, ${real(w21)}], [${real(w12)}, 0.0]])`,
    "neurons = tt.snn.Recurrent(tt.snn.Populations(first=first, second=second), synapses)",
  ].join("\n");
}
const real = (number) => literal(number).replace(/^(-?\d+)$/, "$1.0");

function constructor(name, fixed) {
  const neuron = current(), keywords = [], lines = [];
  for (const param of neuron.params) {
    const changed = changedOf(param), magnitude = param.kind === "negative" ? -param.value : param.value;
    let text = literal(changed ?? magnitude);
    if (changed !== undefined && param.kind === "decay") text = `tt.functional.halflife_to_decay(${text})`;
    const isDefault = param.default !== null && changed === undefined && Math.abs(magnitude - param.default) <= 1e-6 * Math.abs(param.default);
    if (param.keyword && !isDefault) keywords.push(`${param.name}=${text}`);
    if (!param.keyword) lines.push(param.line.replace("{}", () => text));
  }
  for (const choice of neuron.choices) {
    for (const [name, text] of Object.entries(choice.keywords[choiceOf(choice)])) keywords.push(`${name}=${text}`);
    lines.push(...choice.lines[choiceOf(choice)]);
  }
  const call = `${name} = ${neuron.call.name}(${[...fixed, ...keywords].join(", ")})`;
  return [call, ...lines.map((line) => line.replace(/^neuron\b/, () => name))].join("\n");
}

// Drawn values are hundredths: "0*10_50*3" is ten zeros and three of 0.5.
function pack(drawn) {
  const runs = [];
  for (const each of drawn) {
    const hundredths = Math.round(100 * each);
    if (runs.length && runs.at(-1)[0] === hundredths) runs.at(-1)[1]++; else runs.push([hundredths, 1]);
  }
  return runs.map((pair) => pair.join("*")).join("_");
}

function unpack(text, steps) {
  const drawn = [];
  for (const part of text.split("_")) {
    const match = part.match(/^(-?\d{1,6})\*(\d{1,3})$/);
    if (!match) throw new Error("drawn");
    for (let i = 0; i < +match[2]; i++) drawn.push(+match[1] / 100);
  }
  if (drawn.length !== steps) throw new Error("drawn");
  return drawn;
}

function fragment() {
  const { target, pair, shown, gradients } = settings, pairs = onSide(pair ? 0 : shown, fragmentOf);
  if (pair) {
    pairs.push(["neuron2", neurons[settings.sides[1].neuron].label]);
    pairs.push(...onSide(1, fragmentOf).filter(([name]) => name !== "neuron").map(([name, value]) => [`2.${name}`, value]));
    for (const name of PAIR) if (pair[name] !== 0) pairs.push([name, pair[name]]);
    if (shown) pairs.push(["shown", 2]);
  }
  if (gradients && target.of === "output" && target.all) pairs.push(["gradient", "sum"]);
  if (target.of !== "output") pairs.push(["of", target.of]);
  if (!target.all) pairs.push(["step", target.step]);
  return String(new URLSearchParams(pairs));
}

const PAIR = ["w12", "w21", "lag"];
function fragmentOf() {
  const pairs = [], now = input(), neuron = current();
  if (side().neuron) pairs.push(["neuron", neuron.label]);
  for (const param of neuron.params) {
    if (changedOf(param) !== undefined) pairs.push([`p.${param.name}`, changedOf(param)]);
  }
  for (const choice of neuron.choices) {
    if (choiceOf(choice) !== choice.index) pairs.push([`o.${choice.name}`, choice.labels[choiceOf(choice)]]);
  }
  for (const name of ["kind", "amplitude", "period", "width", "seed"]) {
    if (now[name] !== neuron.input[name]) pairs.push([name, now[name]]);
  }
  if (now.kind === "drawn") pairs.push(["drawn", pack(inputs())]);
  return pairs;
}

const limitsOf = (steps) => ({ amplitude: [-1e6, 1e6], period: [2, steps], width: [1, steps], seed: [0, 2 ** 32 - 1], step: [0, steps - 1], w12: [-1e6, 1e6], w21: [-1e6, 1e6], lag: [-LATEST, LATEST] });
const isReal = (name) => ["amplitude", "w12", "w21"].includes(name);

// Settings from a fragment; an error for whatever the page would not have written.
function parse(text) {
  const read = newSettings(), given = [...new URLSearchParams(text)], all = new Map(given);
  if (all.size !== given.length) throw new Error("twice");
  ["neuron", "neuron2"].forEach((key, k) => {
    read.sides[k].neuron = all.has(key) ? neurons.findIndex((each) => each.label === all.get(key)) : 0;
    if (!neurons[read.sides[k].neuron]) throw new Error(key);
  });
  if (all.has("neuron2")) {
    read.pair = Object.fromEntries(PAIR.map((name) => [name, 0]));
    if (!canPair(neurons[read.sides[0].neuron]) || !canPair(neurons[read.sides[1].neuron])) throw new Error("pair");
  }
  if (read.pair && all.get("shown") === "2") read.shown = 1;
  const steps = stepsOf(read), limits = limitsOf(steps), shown = neurons[read.sides[read.shown].neuron].shown;
  const number = (name, given) => {
    const found = Number(given), [low, high] = limits[name];
    if (given.trim() === "" || !(found >= low && found <= high)) throw new Error(name);
    if (!isReal(name) && !Number.isInteger(found)) throw new Error(name);
    return found;
  };
  const mine = given.filter(([key]) => key.startsWith("2.")).map(([key, given]) => [key.slice(2), given]);
  if (mine.length && !read.pair) throw new Error("2.");
  const rest = readSide(read.sides[0], given.filter(([key]) => !key.startsWith("2.")), steps, number);
  if (readSide(read.sides[1], mine, steps, number).length) throw new Error("2.");
  for (const [key, given] of rest) {
    if (["gradient", "of", "step"].includes(key)) read.gradients = true;
    if (key === "of" && ["output", ...shown].includes(given)) read.target.of = given;
    else if (key === "step") Object.assign(read.target, { all: false, step: number(key, given) });
    else if (read.pair && PAIR.includes(key)) read.pair[key] = number(key, given);
    else if (!["neuron", "neuron2"].includes(key) && !(key === "gradient" && given === "sum") && !(key === "shown" && read.shown)) throw new Error(key);
  }
  return read;
}

// Read what is of one neuron; return the rest.
function readSide(into, pairs, steps, number) {
  const neuron = neurons[into.neuron], values = {}, choices = {}, found = {}, rest = [], drawn = new Map(pairs).get("drawn");
  for (const [key, given] of pairs) {
    if (key.startsWith("p.")) {
      const param = neuron.params.find((each) => each.name === key.slice(2));
      if (!param || given.trim() === "" || !isLegal(param, Number(given))) throw new Error(key);
      values[`${param.kind} ${param.name}`] = Number(given);
    } else if (key.startsWith("o.")) {
      const choice = neuron.choices.find((each) => each.name === key.slice(2));
      if (!choice || !choice.labels.includes(given)) throw new Error(key);
      choices[choice.name] = choice.labels.indexOf(given);
    } else if (key === "kind" && INPUTS.includes(given) && (given !== "drawn" || drawn)) found.kind = given;
    else if (key === "drawn") found.drawn = unpack(given, steps);
    else if (["amplitude", "period", "width", "seed"].includes(key)) found[key] = number(key, given);
    else rest.push([key, given]);
  }
  const changed = Object.keys(found).length > 0;
  into.changed[groupOf(neuron)] = { values, choices, input: changed ? { ...neuron.input, ...found } : null };
  return rest;
}

// whether a neuron may stand beside another: one that is made alone
const canPair = (neuron) => neuron.call.alone !== null;
