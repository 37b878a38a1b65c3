// Everything that the fragment of the address holds: which neuron, its values, choices and input,
// and what is differentiated.
const { title, neurons, tries } = JSON.parse(byId("playground").textContent);
const HALFLIVES = [0.1, 1000]; // ends of the sliders of decays, in steps
const INPUTS = ["pulses", "noise", "constant", "drawn"];

const newSettings = () => ({
  neuron: 0,
  // values, choices and input that were changed, by the neuron or by the family of the twelve layers
  changed: {},
  target: { of: "output", step: 100, all: true },
});
let settings = newSettings();

const current = () => neurons[settings.neuron];
const stepCount = () => current().steps;
const groupOf = (neuron) => neuron.letters ? "family" : `neuron ${neuron.label}`;
const changes = () => settings.changed[groupOf(current())] ??= { values: {}, choices: {}, input: null };
// the input at which a neuron shows what it is for, until another is chosen
const input = () => changes().input ?? current().input;
const setInput = (part) => { changes().input = { ...input(), ...part }; };

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

// The Python that makes the neuron.
const literal = (number) => String(round(number, 7));
function python() {
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
  return [`neuron = ${neuron.call.name}(${[...neuron.call.fixed, ...keywords].join(", ")})`, ...lines].join("\n");
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
  const { target } = settings, start = newSettings(), pairs = [], now = input();
  if (settings.neuron) pairs.push(["neuron", current().label]);
  for (const param of current().params) {
    if (changedOf(param) !== undefined) pairs.push([`p.${param.name}`, changedOf(param)]);
  }
  for (const choice of current().choices) {
    if (choiceOf(choice) !== choice.index) pairs.push([`o.${choice.name}`, choice.labels[choiceOf(choice)]]);
  }
  for (const name of ["kind", "amplitude", "period", "width", "seed"]) {
    if (now[name] !== current().input[name]) pairs.push([name, now[name]]);
  }
  if (now.kind === "drawn") pairs.push(["drawn", pack(now.drawn)]);
  if (target.of !== start.target.of) pairs.push(["of", target.of]);
  if (!target.all) pairs.push(["step", target.step]);
  return String(new URLSearchParams(pairs));
}

const limitsOf = ({ steps }) => ({ amplitude: [-1e6, 1e6], period: [2, steps], width: [1, steps], seed: [0, 2 ** 32 - 1], step: [0, steps - 1] });

// Settings from a fragment; an error for whatever the page would not have written.
function parse(text) {
  const read = newSettings(), pairs = [...new URLSearchParams(text)], drawn = new Map(pairs).get("drawn");
  const place = new Map(pairs).get("neuron");
  if (new Map(pairs).size !== pairs.length) throw new Error("twice");
  read.neuron = place === undefined ? 0 : neurons.findIndex((each) => each.label === place);
  const neuron = neurons[read.neuron], values = {}, choices = {}, found = {};
  if (!neuron) throw new Error("neuron");
  const limits = limitsOf(neuron);
  const number = (name, given) => {
    const found = Number(given), [low, high] = limits[name];
    if (given.trim() === "" || !(found >= low && found <= high)) throw new Error(name);
    if (name !== "amplitude" && !Number.isInteger(found)) throw new Error(name);
    return found;
  };
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
    else if (key === "drawn") found.drawn = unpack(given, neuron.steps);
    else if (key === "of" && ["output", ...neuron.shown].includes(given)) read.target.of = given;
    else if (key === "step") Object.assign(read.target, { all: false, step: number(key, given) });
    else if (key in limits) found[key] = number(key, given);
    else if (key !== "neuron") throw new Error(key);
  }
  const changed = Object.keys(found).length > 0;
  read.changed[groupOf(neuron)] = { values, choices, input: changed ? { ...neuron.input, ...found } : null };
  return read;
}

function load() {
  const text = location.hash.slice(1);
  if (!text) return "";
  try {
    settings = parse(text);
    return "";
  } catch {
    settings = newSettings();
    return "The settings in the address are not those of this page and were ignored.";
  }
}

