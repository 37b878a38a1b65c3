// The page of neurons: what a change sets off, and how it starts.
function choose(place) {
  side().neuron = place;
  if (settings.pair && !canPair(current())) unpair();
  changed();
}

// after what makes other controls and plots: beside it stands neither the run before nor what was said of it
function changed() {
  caption("");
  afresh();
}

function afresh() {
  ghost = run = null;
  build();
  update();
}

// ---- updating

let waiting = 0, spoken = "", changedAt = 0;
// many events in one frame cause a single drawing; a run before a change stays behind as its ghost
function update() {
  const now = performance.now();
  if (run && now - changedAt > 700) ghost = run;
  changedAt = now;
  compute();
  redraw();
  clearTimeout(waiting);
  waiting = setTimeout(() => { store(); speak(); }, 400);
}

const redraw = oncePerFrame(() => {
  rows.forEach(draw);
  drawPanels();
  showControls();
});

function showControls() {
  byId("neuron").value = side().neuron;
  showLetters();
  showPair();
  showCompare();
  playhead.show();
  for (const show of controls) show();
  knobs.forEach((each, i) => {
    each.show();
    each.gradient.textContent = brief(run.dParams[i]);
  });
  const { of, step, all } = settings.target;
  document.querySelector("main").classList.toggle("plain", !settings.gradients);
  byId("slopes-of").textContent = `∂ ${all ? `sum of ${of}` : `${of}, step ${step}`}`;
  // a line may break behind these signs, and is copied whole
  byId("python").replaceChildren(...python().split(/(?<=[=.(,])(?=\S)/).flatMap((part) => [part, make("wbr")]));
  const field = rows[0].canvas;
  field.setAttribute("aria-valuenow", String(run.x[cursor]));
  field.setAttribute("aria-valuetext", `step ${cursor}: ${brief(run.x[cursor])}`);
  for (const row of rows.slice(1)) row.canvas.setAttribute("aria-label", `${row.name} over ${plural(stepCount(), "step")}, ${row.out.textContent}`);
  document.body.dataset.ready = "true"; // tests wait for it
}

function speak() {
  const { of, step, all } = settings.target;
  const fired = run.output.reduce((count, value) => count + (value !== 0), 0);
  const what = current().spiking ? `${plural(fired, "spike")}. ` : "";
  const slopes = settings.gradients ? `Gradient of ${all ? `the sum of ${of}` : `${of} at step ${step}`}: peak ${largest()}.` : "";
  const said = `${what}${slopes}`.trim();
  const text = current().label + (said && `: ${said}`);
  if (text !== spoken) say(spoken = text);
}

function build() {
  const neuron = current();
  if (settings.target.of !== "output" && !neuron.shown.includes(settings.target.of)) settings.target.of = "output";
  controls = [];
  byId("summary").textContent = neuron.about.summary;
  byId("about").hidden = neuron.about.summary === "";
  byId("units").textContent = neuron.params.some((param) => param.kind === "decay") ? "half-lives in steps" : "";
  byId("equations").textContent = neuron.about.equations;
  buildPresets();
  buildParams();
  buildChoices();
  buildInput();
  buildTarget();
  buildSynapses();
  buildRows();
}

// ---- start

// The numbers that are drawn, for the console.
window.readPlayground = () => {
  const { pair, shown, target } = settings, now = numbersOf(run), { neuron } = run;
  const lines = neuron.lines.map(({ state }, k) => [state, [...run.lines[k]]]);
  const gradients = { x: [...run.dX], ...named(neuron.params.map((param) => param.name), run.dParams) };
  return {
    ...now, python: python(), target: { ...target }, before: run.before && [...run.before], rates: run.rates, stays: run.stays, lines, gradients,
    other: run.other && onSide(1 - shown, () => numbersOf(run.other)), pair: pair && { ...pair, shown, gradients: run.dWeights },
  };
};
const named = (names, values) => Object.fromEntries(names.map((name, i) => [name, values[i]]));
const numbersOf = ({ neuron, params, x, start, output, record }) => ({
  neuron: neuron.label, choices: named(neuron.choices.map((each) => each.name), neuron.choices.map((each) => each.labels[choiceOf(each)])), input: input().kind,
  params: named(neuron.params.map((param) => param.name), params), x: [...x], start: named(neuron.states, start), output: [...output], states: named(neuron.states, record.map((each) => [...each])),
});

document.title = title;
byId("title").textContent = title;
const playhead = buildPlayhead(stepCount, () => redraw());
buildChooser();
buildTries();
buildCompare();
buildPair();
byId("copy").addEventListener("click", () => copy(python(), "Python copied."));
byId("share").addEventListener("click", () => {
  clearTimeout(waiting);
  store();
  copy(location.href.split("#")[0] + (fragment() && `#${fragment()}`), "Link copied.");
});
byId("reset").addEventListener("click", () => {
  settings = newSettings();
  kept = null;
  playhead.stop();
  changed();
});

addEventListener("hashchange", () => { const problem = load(); changed(); if (problem) { clearTimeout(waiting); say(problem); } });
new ResizeObserver(() => { if (run) redraw(); }).observe(byId("plots"));

page.themes(() => {
  readColours();
  if (run) redraw();
});
buildLetters();
const problem = load();
build();
compute();
redraw();
if (problem) say(problem); else speak();
