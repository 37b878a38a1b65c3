const { title, layers: described, sets } = JSON.parse(byId("network").textContent);
const FREE_STEPS = 100; // of an input that is no sample
const CELLS = 24; // of the map in either direction
const MOST_LINES = 8; // more units are an image
const LIMITS = { amplitude: [-1e6, 1e6], period: [2, FREE_STEPS], width: [1, FREE_STEPS], seed: [0, 2 ** 32 - 1] };
const classes = described.at(-1).size, features = described[0].inputs;
const classColour = (k) => colour[`c${k % 8}`];

// ---- what the page is at

const newSettings = () => ({
  set: 0, sample: 0, rate: 0.01, source: sets.length ? "sample" : "pulses",
  input: { amplitudes: new Array(Math.min(features, 4)).fill(1), period: 30, width: 10, seed: 1 },
});
let settings = newSettings(), network, history, memory, training = 0;
const set = () => sets[settings.set];

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
for (const each of sets) each.lanes = lanesFor(each);

function restart() {
  network = networkOf(described);
  history = [];
  memory = sets.length ? memoryOf(network, set().labels.length, set().steps, true) : null;
  verdicts();
}

// What the network says of all samples, without learning from them.
let said = [], measured = null;
function verdicts() {
  if (!sets.length) return;
  const outputs = forwardPass(network, memory, set().lanes);
  measured = crossEntropy(outputs, set().labels, classes, memory.places.at(-1).gradient);
  said = meansOf(outputs, classes).map(winner);
}

function learn() {
  const found = trainOnce(network, memory, set().lanes, set().labels, settings.rate);
  history.push(found);
  if (!Number.isFinite(found.loss)) { pause(); say("The loss is not finite. Reset, and take a lower rate."); }
}

// ---- the sample, or another input, through all layers

let run;
function compute() {
  const { source, sample, input } = settings, { amplitudes, ...rest } = input;
  const steps = source === "sample" ? set().steps : FREE_STEPS;
  const x = source === "sample" ? set().lanes.slice(sample * features, (sample + 1) * features)
    : Array.from({ length: features }, (_, k) => Float64Array.from(
      inputOf({ kind: source, amplitude: amplitudes[k % amplitudes.length], ...rest, seed: rest.seed + k }, steps)));
  const places = memoryOf(network, 1, steps, false);
  forwardPass(network, places, x);
  run = { steps, x, layers: network.layers.map((layer, k) => ({ layer, output: places.places[k].output, record: places.places[k].record })) };
}

// ---- the map: what the network says of every point of the plane

let area = null, map = null; // `map`: of each cell the class and how sure
const plane = () => sets.length > 0 && features === 2 && set().form !== "sequences";
function boundsOf({ form, numbers, steps }) {
  if (form === "times") return [-0.5, steps - 0.5];
  const most = Math.max(...numbers.map(Math.abs)) * 1.15 || 1;
  return [-most, most];
}
const centre = (k) => area[0] + (k + 0.5) / CELLS * (area[1] - area[0]);

function computeMap() {
  if (!plane()) return;
  area = boundsOf(set());
  const { form, steps } = set(), x = lanesOf(CELLS * 2, steps), cells = memoryOf(network, CELLS, steps, false);
  map = [];
  for (let row = 0; row < CELLS; row++) {
    x.forEach((lane, k) => {
      const value = centre(k % 2 ? row : k >> 1);
      if (form === "values") lane.fill(value);
      else { lane.fill(0); lane[clamp(Math.round(value), 0, steps - 1)] = 1; }
    });
    map.push(meansOf(forwardPass(network, cells, x), classes).map((scores) => [winner(scores), Math.max(...softmax(scores))]));
  }
}

function drawMap() {
  const { g, width, height } = fitted(byId("map")), { numbers, labels } = set();
  const scale = (value) => (value - area[0]) / (area[1] - area[0]);
  const edge = (k, size) => Math.round(k / CELLS * size); // whole pixels, so that cells do not overlap
  map.forEach((row, j) => row.forEach(([best, share], i) => {
    g.globalAlpha = 0.1 + 0.5 * clamp((share * classes - 1) / (classes - 1), 0, 1);
    g.fillStyle = classColour(best);
    const x = edge(i, width), y = edge(CELLS - j - 1, height);
    g.fillRect(x, y, edge(i + 1, width) - x, edge(CELLS - j, height) - y);
  }));
  g.globalAlpha = 1;
  labels.forEach((label, k) => {
    const x = scale(numbers[2 * k]) * width, y = (1 - scale(numbers[2 * k + 1])) * height;
    const chosen = settings.source === "sample" && k === settings.sample;
    g.beginPath(); g.arc(x, y, chosen ? 6 : 3.5, 0, 7);
    g.fillStyle = classColour(label); g.fill();
    g.lineWidth = chosen ? 2.5 : 1; g.strokeStyle = chosen || said[k] !== label ? colour.ink : colour.panel; g.stroke();
  });
  g.font = FONT; g.fillStyle = colour.muted;
  g.textAlign = "right"; g.textBaseline = "bottom";
  const unit = set().form === "times" ? "spike of input" : "input";
  g.fillText(`${unit} 0 →`, width - 4, height - 3);
  g.textAlign = "left"; g.textBaseline = "top";
  g.fillText(`↑ ${unit} 1`, 4, 4);
}

function drawLosses() {
  const { g, width, height } = fitted(byId("losses")), b = { x: 34, y: 20, w: width - 80, h: height - 38 };
  const losses = history.map(({ loss }) => loss), [low, high] = rounded(0, Math.max(ends([losses])[1], Math.log(classes)));
  const Y = (value) => b.y + (high - value) / (high - low) * b.h, last = Math.max(losses.length - 1, 20);
  const X = (k) => b.x + k / last * b.w;
  drawValues(g, b, [low, high], Y);
  drawScale(g, b, 0, last, X, "update");
  g.lineWidth = 1.6;
  g.strokeStyle = colour.c1;
  drawLine(g, losses, X, Y);
  g.strokeStyle = colour.c2;
  drawLine(g, history.map(({ right }) => high * right), X, Y);
  g.font = FONT; g.textBaseline = "middle"; g.textAlign = "left";
  g.fillStyle = colour.c2;
  for (const share of [0, 0.5, 1]) g.fillText(`${100 * share} %`, b.x + b.w + 5, clamp(Y(high * share), b.y + 4, b.y + b.h - 2));
  g.textBaseline = "top"; g.textAlign = "right"; g.fillText("share right", width - 2, 2);
  g.textAlign = "left"; g.fillStyle = colour.c1; g.fillText("loss", 4, 2);
  const now = history.at(-1);
  byId("losses").setAttribute("aria-label", `loss and share right over ${plural(history.length, "update")}${now ? `: from ${history[0].loss.toFixed(3)} and ${(100 * history[0].right).toFixed(0)} % to ${now.loss.toFixed(3)} and ${(100 * now.right).toFixed(0)} %` : ""}`);
}

// ---- the layers over time

let rows = [], hover = null;
function buildRows() {
  const states = (layer) => layer.states.indexOf(layer.shown);
  rows = [{ name: "input", kind: "input", values: () => run.x, size: features }];
  described.forEach((layer, k) => {
    const { name, title, size } = layer, values = () => run.layers[k].output;
    if (layer.kind === "linear") rows.push({ name: `${name}: ${title}`, kind: "product", values, size });
    else {
      const place = states(layer), record = () => run.layers[k].record.map((each) => each[place]);
      // the output of a layer that does not fire is its membrane
      if (layer.spiking || layer.shown !== "mem") rows.push({ name: `${name}: ${title}, ${words(layer.shown)}`, kind: "state", values: record, size });
      if (layer.spiking) rows.push({ name: `${name}: spikes`, kind: "spikes", values, size });
      else rows.push({ name: `${name}: ${title}, output`, kind: "output", values, size });
    }
  });
  rows.forEach((row, k) => {
    row.last = k === rows.length - 1;
    row.lines = row.size <= MOST_LINES && row.kind !== "spikes";
    row.canvas = make("canvas", { role: "img" });
    row.out = make("output");
    row.element = make("div", { class: "row", "data-row": k }, row.canvas, make("p", {}, make("b", {}, row.name), row.out));
    row.element.style.flexGrow = row.kind === "input" ? 0.8 : 1;
    row.canvas.addEventListener("pointermove", (event) => {
      const b = box(row), frame = row.canvas.getBoundingClientRect();
      hover = { row, step: clamp(Math.floor((event.clientX - frame.left - b.x) / b.w * run.steps), 0, run.steps - 1),
        unit: clamp(Math.floor((event.clientY - frame.top - b.y) / b.h * row.size), 0, row.size - 1) };
      redraw();
    });
    row.canvas.addEventListener("pointerleave", () => { hover = null; redraw(); });
  });
  byId("rows").replaceChildren(...rows.map((row) => row.element));
}

function box(row) {
  const x = narrow.matches ? 42 : 52, y = narrow.matches ? 17 : 21;
  return { x, y, w: Math.max(1, row.canvas.clientWidth - x - RIGHT), h: Math.max(1, row.canvas.clientHeight - y - (row.last ? AXIS : 5)) };
}

function draw(row) {
  const { g } = fitted(row.canvas), b = box(row), values = row.values(), steps = run.steps;
  const X = (t) => b.x + (t + 0.5) / steps * b.w;
  const paint = row.lines ? paintLines(g, b, row, values, X) : paintUnits(g, b, row, values);
  if (head === null) paint();
  else for (const [alpha, from, to] of [[1, 0, head / steps], [0.2, head / steps, 1]]) {
    g.save();
    g.beginPath(); g.rect(b.x + from * b.w, 0, (to - from) * b.w, b.y + b.h + 6); g.clip();
    g.globalAlpha = alpha; paint();
    g.restore();
  }
  if (row.last) drawScale(g, b, 0, steps - 1, X, "step");
  const at = hover?.step ?? head;
  if (at !== null && at < steps) drawUpright(g, b, X(at), colour.muted);
  read(row, values);
}

function paintLines(g, b, row, values, X) {
  const [low, high] = rounded(...ends(values)), Y = (value) => b.y + (high - value) / (high - low) * b.h;
  drawValues(g, b, [low, high], Y);
  return () => {
    g.lineWidth = 1.6; g.lineJoin = "round";
    g.font = FONT; g.textAlign = "left"; g.textBaseline = "middle";
    values.forEach((each, k) => {
      g.strokeStyle = g.fillStyle = row.last ? classColour(k) : colour[`c${(k + 4) % 8}`];
      drawLine(g, each, X, Y);
      if (row.size > 1 && Number.isFinite(each.at(-1))) g.fillText(String(k), b.x + b.w + 3, Y(each.at(-1)));
    });
  };
}

// One line of pixels for each unit: spikes as marks, other values by how large they are.
function paintUnits(g, b, row, values) {
  const most = Math.max(...ends(values).map(Math.abs)) || 1, wide = b.w / run.steps, high = b.h / row.size;
  g.font = FONT; g.fillStyle = colour.muted; g.textAlign = "right"; g.textBaseline = "middle";
  g.fillText("0", b.x - 6, b.y + Math.max(4, high / 2));
  g.fillText(String(row.size - 1), b.x - 6, b.y + b.h - Math.max(4, high / 2));
  g.strokeStyle = colour.line; g.strokeRect(b.x - 0.5, b.y - 0.5, b.w + 1, b.h + 1);
  return () => {
    const alpha = g.globalAlpha, spikes = row.kind === "spikes";
    g.save();
    values.forEach((each, k) => each.forEach((value, t) => {
      if (value === 0 || !Number.isFinite(value)) return;
      g.globalAlpha = alpha * (spikes ? 1 : Math.min(1, Math.abs(value) / most));
      g.fillStyle = value < 0 ? colour.down : colour.accent;
      const x = Math.round(b.x + t * wide), y = Math.round(b.y + k * high); // whole pixels do not overlap
      if (spikes) g.fillRect(x, y, Math.max(1.5, 0.7 * wide), Math.max(1, 0.8 * high));
      else g.fillRect(x, y, Math.round(b.x + (t + 1) * wide) - x, Math.round(b.y + (k + 1) * high) - y);
    }));
    g.restore();
  };
}

function read(row, values) {
  const count = () => values.reduce((sum, each) => sum + each.reduce((all, value) => all + (value !== 0), 0), 0);
  const at = hover?.step ?? head;
  if (hover?.row === row && !row.lines) row.out.textContent = `neuron ${hover.unit}, step ${hover.step}: ${brief(values[hover.unit][hover.step])}`;
  else if (at !== null && at < run.steps && row.lines) row.out.textContent = `step ${at}: ${values.map((each) => brief(each[at])).join(", ")}`;
  else if (at !== null && at < run.steps && row.kind === "spikes") row.out.textContent = `step ${at}: ${plural(values.filter((each) => each[at] !== 0).length, "spike")}`;
  else row.out.textContent = row.kind === "spikes" ? plural(count(), "spike") : "";
  row.canvas.setAttribute("aria-label", `${row.name} over ${plural(run.steps, "step")}. ${row.out.textContent}`);
}

// ---- controls

const KINDS = [...(sets.length ? ["sample"] : []), "pulses", "constant", "noise"];
let inputKnobs = [];
function buildControls() {
  controls = [];
  if (sets.length > 1) {
    byId("sets").replaceChildren(make("label", {}, "data"), select("data", sets.map((each) => each.name), () => settings.set, (place) => {
      pause();
      Object.assign(settings, { set: place, sample: 0 });
      restart();
      computeMap();
    }));
  }
  const rate = knob("rate", "rate of Adam", { ...logarithmic(1e-4, 0.3), get: () => settings.rate, set: (given) => { settings.rate = given; }, legal: (given) => given > 0 && given <= 10 });
  byId("rate").replaceChildren(rate.element);
  const kinds = select("input", KINDS, () => KINDS.indexOf(settings.source), (place) => { settings.source = KINDS[place]; head = null; });
  const { input } = settings;
  const integers = (name) => ({
    get: () => settings.input[name], set: (given) => { settings.input[name] = Math.round(given); }, integer: true,
    legal: (given) => Number.isInteger(given) && given >= LIMITS[name][0] && given <= LIMITS[name][1],
  });
  const amplitude = (k) => knob(`amplitude ${k}`, input.amplitudes.length === features ? `input ${k}` : `inputs ${k}, ${k + 4}, …`, {
    ...linear(-3, 3, 0.02), get: () => settings.input.amplitudes[k], set: (given) => { settings.input.amplitudes[k] = given; },
    legal: (given) => Math.abs(given) <= LIMITS.amplitude[1],
  });
  inputKnobs = [
    ...input.amplitudes.map((_, k) => ["pulses constant noise", amplitude(k)]),
    ["pulses", knob("period", "period", { ...linear(2, FREE_STEPS, 1), unit: "steps", ...integers("period") })],
    ["pulses", knob("width", "width", { ...linear(1, 60, 1), unit: "steps", ...integers("width") })],
    ["noise", knob("seed", "seed", { ...linear(0, 99, 1), ...integers("seed") })],
  ];
  const which = sets.length ? knob("sample", "sample", {
    at: (place) => Math.round(place * (set().labels.length - 1)), place: (shown) => shown / Math.max(1, set().labels.length - 1), integer: true,
    get: () => settings.sample, set: (given) => { settings.sample = given; },
    legal: (given) => Number.isInteger(given) && given >= 0 && given < set().labels.length,
    note: () => `class ${set().labels[settings.sample]}, says ${said[settings.sample]}`,
  }) : null;
  if (which) inputKnobs.push(["sample", which]);
  byId("input").replaceChildren(make("div", { class: "line" }, kinds), ...inputKnobs.map(([, each]) => each.element));
  controls.push(rate.show, () => {
    for (const [kinds, each] of inputKnobs) { each.element.hidden = !kinds.split(" ").includes(settings.source); each.show(); }
  });
}

function choose(sample) {
  Object.assign(settings, { sample, source: "sample" });
  update();
}

byId("map").addEventListener("pointerdown", (event) => {
  const frame = byId("map").getBoundingClientRect(), { numbers, labels } = set(), span = area[1] - area[0];
  const x = area[0] + (event.clientX - frame.left) / frame.width * span, y = area[1] - (event.clientY - frame.top) / frame.height * span;
  const far = labels.map((_, k) => Math.hypot(numbers[2 * k] - x, numbers[2 * k + 1] - y));
  choose(far.indexOf(Math.min(...far)));
});
byId("map").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key], count = set().labels.length;
  if (event.ctrlKey || event.altKey || event.metaKey || move === undefined) return;
  event.preventDefault();
  choose((settings.sample + move + count) % count);
});

// ---- training: as many updates in a frame as it has time for

function pause() { cancelAnimationFrame(training); training = 0; byId("train").textContent = "train"; }
let frames = 0;
function trainFrame() {
  training = requestAnimationFrame(trainFrame);
  const end = performance.now() + 14;
  do learn(); while (performance.now() < end && training);
  if (frames++ % 6 === 0) { verdicts(); computeMap(); compute(); }
  redraw();
}
function shown() { verdicts(); computeMap(); update(); }
byId("train").addEventListener("click", () => {
  if (training) { pause(); shown(); return; }
  byId("train").textContent = "pause";
  training = requestAnimationFrame(trainFrame);
});
byId("once").addEventListener("click", () => { pause(); learn(); shown(); });
byId("reset").addEventListener("click", () => {
  pause();
  const { set: place } = settings;
  settings = { ...newSettings(), set: place };
  playhead.stop();
  restart();
  buildControls();
  shown();
});

// ---- updating

function update() { compute(); redraw(); }
const redraw = oncePerFrame(() => {
  rows.forEach(draw);
  if (sets.length) {
    drawLosses();
    if (plane()) {
      drawMap();
      byId("map").setAttribute("aria-label", `sample ${settings.sample} of ${set().labels.length}, class ${set().labels[settings.sample]}: the network says ${said[settings.sample]}`);
    }
    const now = measured && !training ? measured : history.at(-1);
    byId("progress").textContent = now ? `${plural(history.length, "update")}: loss ${now.loss.toFixed(3)}, ${(100 * now.right).toFixed(0)} % right` : "";
  }
  byId("space").hidden = !plane();
  for (const show of controls) show();
  playhead.show();
  document.body.dataset.ready = "true"; // tests wait for it
});

// ---- start

// The numbers that are drawn, for the console.
window.readNetwork = () => ({
  updates: history.length, losses: history.map(({ loss }) => loss), right: measured?.right, training: training !== 0,
  source: settings.source, sample: settings.sample, x: run.x.map((each) => [...each]),
  layers: run.layers.map(({ layer, output, record }) => ({
    output: output.map((each) => [...each]), states: Object.fromEntries((layer.states ?? []).map((name, k) => [name, record.map((lanes) => [...lanes[k]])])),
  })),
  tensors: Object.fromEntries(network.layers.flatMap(({ name, tensors }) => tensors.map((each) => [`${name}.${each.name}`, [...each.values]]))),
});

document.title = title;
byId("title").textContent = title;
byId("first").hidden = !sets.length;
document.querySelector("main").classList.toggle("still", !sets.length);
byId("layers").textContent = described.map((layer) => `${layer.name}: ${layer.title}`).join("\n");
const playhead = buildPlayhead(() => run.steps, () => redraw());
restart();
computeMap();
buildControls();
buildRows();
compute();
new ResizeObserver(() => redraw()).observe(byId("plots"));
page.themes(() => { readColours(); redraw(); });
