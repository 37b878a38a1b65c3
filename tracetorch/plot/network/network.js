// ---- the network, and what it says

let network, history, memory, run, training = 0, target = null; // `target`: the update at which training ends
let verdict = { said: [] }; // of all samples, without learning from them
const HELD_EVERY = 5; // updates from one measurement of what is held out to the next

// The samples of a data set as lanes, [sample][feature].
function lanesFor({ form, numbers, labels, steps }) {
  const lanes = lanesOf(labels.length * features, steps);
  lanes.forEach((lane, k) => {
    if (form === "values") lane.fill(numbers[k]);
    else if (form === "times") lane[numbers[k]] = 1;
    else lane.set(numbers.slice(k * steps, (k + 1) * steps));
  });
  return lanes;
}
for (const each of sets) for (const samples of [each, each.held]) if (samples) samples.lanes = lanesFor(samples);

function restart() {
  pause();
  network = networkOf(chosenLayers());
  history = [];
  memory = null;
  if (sets.length) memory = [set(), set().held].map((samples) => samples && memoryOf(network, samples.labels.length, samples.steps, samples === set()));
  look();
}

// Loss and share right of samples, and what the network says of each.
function measure(samples, places) {
  const outputs = forwardPass(network, places, samples.lanes), slopes = lanesOf(outputs.length, samples.steps);
  return { ...crossEntropy(outputs, samples.labels, classes, slopes), said: meansOf(outputs, classes).map(winner) };
}
const measureHeld = () => set().held ? measure(set().held, memory[1]) : null;

function look() {
  if (sets.length) verdict = { ...measure(set(), memory[0]), held: measureHeld() };
  computeMap();
}

function learn() {
  const update = history.length, held = update % HELD_EVERY ? null : measureHeld();
  const found = trainOnce(network, memory[0], set().lanes, set().labels, settings.rate);
  history.push({ ...found, update, held });
  if (!Number.isFinite(found.loss)) { pause(); say("The loss is not finite. Reset, and take a lower rate."); }
}

// The sample, or another input, through all layers; and for a sample what flows back to each neuron.
function compute() {
  const { source, sample, amplitudes, period, pulse, seed } = settings, isSample = source === "sample";
  const steps = isSample ? set().steps : FREE_STEPS;
  const x = isSample ? set().lanes.slice(sample * features, (sample + 1) * features)
    : Array.from({ length: features }, (_, k) => Float64Array.from(
      inputOf({ kind: source, amplitude: amplitudes[k % amplitudes.length], period, width: pulse, seed: seed + k }, steps)));
  const memory = memoryOf(network, 1, steps, isSample), outputs = forwardPass(network, memory, x);
  if (isSample) {
    crossEntropy(outputs, [set().labels[sample]], classes, memory.places.at(-1).gradient);
    backwardPass(network, memory, x);
  }
  const before = (k) => k ? memory.places[k - 1] : { output: x, gradient: memory.input };
  run = {
    steps, x,
    layers: network.layers.map((layer, k) => ({
      layer, output: memory.places[k].output, record: memory.places[k].record, flow: before(k).gradient,
      distances: layer.bump ? distancesOf(layer, steps, before(k).output) : null,
    })),
  };
}

// ---- controls

// A whole number of the settings; `changed` what follows from another.
const whole = (name, get, changed = () => {}) => ({
  get, set: (given) => { settings[name] = Math.round(given); changed(); }, integer: true, legal: (given) => isLegal.whole(name, given),
});
const changed = () => { restart(); buildRows(); };
const line = (label, options, get, choose) => make("div", { class: "line" }, make("label", {}, label), select(label, options, get, choose));

function buildNetwork() {
  const knobs = [], regular = isRegular(net());
  if (regular) {
    knobs.push(knob("width", "neurons in a layer", { ...linear(...LIMITS.width, 1), ...whole("width", widthOf, changed) }));
    knobs.push(knob("depth", "hidden layers", { ...linear(...LIMITS.depth, 1), ...whole("depth", depthOf, changed) }));
  }
  for (const name of decaysOf(net())) knobs.push(halflifeKnob(name));
  if (regular) knobs.push(knob("weights", "weights drawn by seed", { ...linear(0, 20, 1), ...whole("weights", () => settings.weights, changed) }));
  const chooser = networks.length < 2 ? [] : [line("network", networks.map((each) => each.name), () => settings.net, (place) => {
    Object.assign(settings, { net: place, halflives: {}, ...(isRegular(networks[place]) ? {} : { width: null, depth: null, weights: 0 }) });
    changed();
    buildControls();
  })];
  byId("size").replaceChildren(...chooser, ...knobs.map((each) => each.element));
  byId("build").hidden = chooser.length + knobs.length === 0;
  controls.push(...knobs.map((each) => each.show));
}

// A field that holds a half-life is named so, with the decay per step and, after training, its range.
function halflifeKnob(name) {
  const raw = () => network.layers.slice(0, -1).flatMap(({ tensors }) => tensors.filter((each) => each.name === `raw_${name}`).flatMap(({ values }) => [...values]));
  const start = halflifeOf(net().layers[1].tensors.find((each) => each.name === `raw_${name}`).values[0]);
  const get = () => settings.halflives[name] ?? round(start);
  return knob(`h.${name}`, `half-life of ${words(name)}`, {
    ...logarithmic(...HALFLIVES), unit: "steps", get, legal: isLegal.halflife,
    set: (given) => { settings.halflives[name] = given; changed(); },
    note: () => {
      const now = raw().map(halflifeOf), [low, high] = [Math.min(...now), Math.max(...now)];
      return history.length && high - low > 0.01 ? `now ${round(low, 2)} to ${round(high, 2)}` : `decay ${round(0.5 ** (1 / get()))}`;
    },
  });
}

function buildTraining() {
  const choices = [];
  if (sets.length > 1) choices.push(line("data", sets.map((each) => each.name), () => settings.set, (place) => {
    Object.assign(settings, { set: place, sample: 0 });
    changed();
  }));
  byId("sets").replaceChildren(...choices);
  const rate = knob("rate", "rate of Adam", { ...logarithmic(...RATES), get: () => settings.rate, set: (given) => { settings.rate = given; }, legal: isLegal.rate });
  byId("rate").replaceChildren(rate.element);
  controls.push(rate.show);
}

function buildInput() {
  const { amplitudes } = settings;
  const amplitude = (k) => knob(`amplitude ${k}`, amplitudes.length === features ? `input ${k}` : `inputs ${k}, ${k + 4}, …`, {
    ...linear(-3, 3, 0.02), get: () => settings.amplitudes[k], set: (given) => { settings.amplitudes[k] = given; }, legal: isLegal.amplitude,
  });
  const knobs = [
    ...amplitudes.map((_, k) => ["pulses constant noise", amplitude(k)]),
    ["pulses", knob("period", "period", { ...linear(2, FREE_STEPS, 1), unit: "steps", ...whole("period", () => settings.period) })],
    ["pulses", knob("pulse", "width", { ...linear(1, 60, 1), unit: "steps", ...whole("pulse", () => settings.pulse) })],
    ["noise", knob("seed", "seed", { ...linear(0, 99, 1), ...whole("seed", () => settings.seed) })],
  ];
  if (sets.length) knobs.push(["sample", knob("sample", "sample", {
    at: (place) => Math.round(place * (set().labels.length - 1)), place: (shown) => shown / Math.max(1, set().labels.length - 1), integer: true,
    get: () => settings.sample, set: (given) => { settings.sample = given; },
    legal: (given) => Number.isInteger(given) && given >= 0 && given < set().labels.length,
    note: () => `class ${set().labels[settings.sample]}, says ${verdict.said[settings.sample]}`,
  })]);
  const kinds = select("input", KINDS, () => KINDS.indexOf(settings.source), (place) => { settings.source = KINDS[place]; head = null; buildRows(); });
  byId("input").replaceChildren(make("div", { class: "line" }, kinds), ...knobs.map(([, each]) => each.element));
  controls.push(() => {
    for (const [kinds, each] of knobs) { each.element.hidden = !kinds.split(" ").includes(settings.source); each.show(); }
  });
}

function buildControls() {
  controls = [];
  buildNetwork();
  if (sets.length) buildTraining();
  buildInput();
  byId("back").replaceChildren(check("show what flows back, beside the spikes", () => settings.rows === 1, (checked) => { settings.rows = +checked; buildRows(); }));
}

function choose(sample) {
  const other = settings.source !== "sample";
  Object.assign(settings, { sample, source: "sample" });
  if (other) buildRows();
  update();
}

byId("map").addEventListener("pointerdown", chooseNearest);
byId("map").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key], count = set().labels.length;
  if (event.ctrlKey || event.altKey || event.metaKey || move === undefined) return;
  event.preventDefault();
  choose((settings.sample + move + count) % count);
});

// ---- training: as many updates in a frame as it has time for

function pause() { cancelAnimationFrame(training); training = 0; target = null; byId("train").textContent = "train"; }
let looked = 0; // when the map may be computed again: it may take a quarter of the time
function trainFrame() {
  training = requestAnimationFrame(trainFrame);
  const start = performance.now();
  while (training && performance.now() < start + 14 && history.length !== target) learn();
  if (history.length === target) { pause(); shown(); return; }
  const now = performance.now();
  if (now > looked) { look(); compute(); looked = performance.now() + 3 * (performance.now() - now); }
  redraw();
}
function trainTo(updates) {
  pause();
  target = updates;
  byId("train").textContent = "pause";
  training = requestAnimationFrame(trainFrame);
}
function shown() { look(); update(); }
byId("train").addEventListener("click", () => { if (training) { pause(); shown(); } else trainTo(100 * Math.floor(history.length / 100 + 1)); });
byId("once").addEventListener("click", () => { pause(); learn(); shown(); });
byId("reset").addEventListener("click", () => {
  settings = { ...newSettings(), set: settings.set };
  store();
  begin();
});
byId("share").addEventListener("click", () => {
  settings.updates = history.length;
  store();
  copy(location.href, history.length ? `Link copied. It trains ${plural(history.length, "update")} at the rate above.` : "Link copied.");
});
byId("copy").addEventListener("click", () => copy(byId("python").textContent, "Python copied."));

// Begin as the settings say, and train as far.
function begin() {
  caption("");
  hover = null;
  restart();
  if (settings.rows) byId("back-shown").open = true;
  buildControls();
  buildRows();
  compute();
  playhead.stop();
  redraw();
  if (settings.updates) trainTo(settings.updates);
}

// ---- updating

function update() { compute(); redraw(); }
const redraw = oncePerFrame(() => {
  rows.forEach(draw);
  if (sets.length) {
    drawLosses();
    showKey();
    if (plane()) {
      drawMap();
      byId("map").setAttribute("aria-label", `sample ${settings.sample} of ${set().labels.length}, class ${set().labels[settings.sample]}: the network says ${verdict.said[settings.sample]}`);
    }
    const now = training && history.length ? { ...history.at(-1), held: verdict.held } : verdict, tell = ({ loss, right }) => `${loss.toFixed(3)}, ${(100 * right).toFixed(0)} % right`;
    byId("progress").textContent = `${plural(history.length, "update")}: loss ${tell(now)}${now.held ? `; held out ${tell(now.held)}` : ""}`;
  }
  const spiking = run.layers.some((each) => each.distances);
  byId("space").hidden = !plane();
  byId("bump").hidden = byId("passing").hidden = !spiking;
  byId("smooth").hidden = spiking;
  if (spiking && byId("back-shown").open) drawBump();
  byId("back").hidden = settings.source !== "sample";
  byId("python").textContent = python(network.layers);
  for (const show of controls) show();
  playhead.show();
  document.body.dataset.ready = "true"; // tests wait for it
});

// ---- start

// The numbers that are drawn, for the console.
window.readNetwork = () => {
  const lists = (lanes) => lanes.map((each) => [...each]);
  return {
    updates: history.length, losses: history.map(({ loss }) => loss), right: verdict.right, training: training !== 0,
    held: history.flatMap(({ update, held }) => held ? [[update, held.loss, held.right]] : []), loss: verdict.loss, heldNow: verdict.held && [verdict.held.loss, verdict.held.right],
    settings: { ...settings, updates: history.length }, source: settings.source, sample: settings.sample, x: lists(run.x),
    layers: run.layers.map(({ layer, output, record, flow, distances }) => ({
      output: lists(output), states: Object.fromEntries((layer.states ?? []).map((name, k) => [name, record.map((lanes) => [...lanes[k]])])),
      flow: flow && lists(flow), distances: distances && lists(distances),
    })),
    tensors: Object.fromEntries(network.layers.flatMap(({ name, tensors }) => tensors.map((each) => [`${name}.${each.name}`, [...each.values]]))),
    python: python(network.layers),
  };
};

document.title = title;
byId("title").textContent = title;
byId("first").hidden = byId("gradient").hidden = !sets.length;
document.querySelector("main").classList.toggle("still", !sets.length);
const playhead = buildPlayhead(() => run.steps, () => redraw());
const problem = load();
buildTries();
begin();
if (problem) say(problem);
window.addEventListener("hashchange", () => { const problem = load(); begin(); say(problem); });
byId("back-shown").addEventListener("toggle", () => redraw());
new ResizeObserver(() => redraw()).observe(byId("plots"));
page.themes(() => { readColours(); redraw(); });
