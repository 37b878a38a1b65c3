// The plots over time: input, states, output, gradient.
const STATE_COLOURS = { mem: "c0", syn: "c5", rec: "c3" };
const SPARE_COLOURS = ["c3", "c5", "c6", "c7"];
const BUMP = 44; // pixels on the right of a membrane, for the derivative of the spike function
let rows = [], hover = null;

function buildRows() {
  const neuron = current();
  let spare = 0;
  const paint = (name, first) => STATE_COLOURS[name] ?? (first ? "c0" : SPARE_COLOURS[spare++ % SPARE_COLOURS.length]);
  // the membrane, which is the first state, stands beside the spikes
  const states = [...neuron.shown].reverse();
  const recordOf = (name) => (each) => each.record[each.neuron.states.indexOf(name)];
  rows = [
    { kind: "input", name: "input", grow: 1.1, colour: "c4", from: (each) => each.x },
    ...states.map((name) => ({
      kind: "state", name, of: name, grow: name === neuron.states[0] ? 1.7 : 0.9, colour: paint(name, name === neuron.states[0]),
      from: recordOf(name), membrane: name === neuron.states[0], fires: neuron.lines.some((line) => line.state === name),
    })),
    { kind: "output", name: neuron.output, of: "output", grow: neuron.spiking ? 0.8 : 1.7, colour: neuron.spiking ? "ink" : "c0", from: (each) => each.output },
    ...(settings.pair ? [{ kind: "other", name: `neuron ${2 - settings.shown}: ${words(otherNeuron().states[0])}`, grow: 1, colour: "c5", from: (each) => each.other?.record[0] }] : []),
    ...(settings.gradients ? [{ kind: "gradient", name: "input gradient", grow: 1.2, colour: "c0", from: (each) => each.dX }] : []),
  ];
  rows.at(-1).last = true;
  for (const row of rows) {
    row.values = () => row.from(run);
    makeRow(row, row.of ?? row.kind, row.kind === "input" ? { class: "hand", tabindex: 0, role: "slider", "aria-label": "input at a step: left and right choose the step, up and down change the value", "aria-valuemin": -100, "aria-valuemax": 100 } : { role: "img" });
    listen(row);
  }
  byId("rows").replaceChildren(...rows.map((row) => row.element));
}

const otherNeuron = () => onSide(1 - settings.shown, current);
const hasBump = () => settings.gradients && current().lines.length > 0 && current().slopes.length > 0;
const box = (row) => boxOf(row.canvas, row.last ? AXIS : 5, hasBump() ? BUMP : 0);

const linesOf = (row) => row.kind === "state" ? current().lines.flatMap(({ state, sign }, k) => state === row.of ? [{ line: run.lines[k], sign }] : []) : [];
// another run behind this one: A, or what was there before the last change
function otherOf(row) {
  const other = kept?.run ?? ghost;
  if (!other || row.kind === "gradient" || row.kind === "other" || (other !== kept?.run && other.neuron !== run.neuron)) return null;
  const values = row.membrane ? other.record[0] : row.from(other);
  return values?.length === stepCount() ? values : null;
}

// The membrane before its reset runs away in some neurons: held at as far beyond the line again.
function heldBefore(row) {
  if (!row.fires || !run.before) return null;
  const lists = [row.values(), ...linesOf(row).map(({ line }) => line)].map((list) => list.filter(Number.isFinite));
  const low = Math.min(...lists.map((list) => Math.min(...list))), high = Math.max(...lists.map((list) => Math.max(...list)));
  return run.before.map((value) => clamp(value, low - (high - low), high + (high - low)));
}

// lowest and highest value of a row, rounded outwards so that the axis seldom moves
function extent(row) {
  if (row.frozen) return row.frozen; // while a hand draws, the axis stays
  const lists = [row.values(), row.before ?? [], ...linesOf(row).map(({ line }) => line), otherOf(row) ?? []];
  const all = lists.flatMap((list) => [...list]).filter(Number.isFinite), least = Math.min(...all), most = Math.max(...all);
  if (row.kind === "state" && most < -10) { // a voltage: what lies between it and 0 is no news
    const [first, second] = ticks(least, most, 5), half = (second - first) / 2 || 1;
    return [Math.floor(least / half - 0.5) * half, Math.ceil(most / half + 0.5) * half];
  }
  let [low, high] = ends([all]);
  const include = (value) => { low = Math.min(low, value); high = Math.max(high, value); };
  if (row.kind === "input") { include(current().unit); if (low < 0 || input().kind === "drawn") include(-current().unit); }
  if (row.kind === "output" && current().spiking) include(1);
  return rounded(low, high);
}

function draw(row) {
  const { g } = fitted(row.canvas), b = box(row), values = row.values(), steps = stepCount();
  row.before = heldBefore(row);
  const [low, high] = row.extent = extent(row);
  const X = (t) => b.x + (t + 0.5) / steps * b.w;
  const Y = (value) => b.y + (high - value) / (high - low) * b.h;
  drawValues(g, b, [low, high], Y);
  if (row.last) drawScale(g, b, 0, steps - 1, X, "step");
  // the step that is differentiated, and the one under the pointer
  const { target } = settings;
  if (!target.all) drawUpright(g, b, X(target.step), row.of === target.of ? colour.ink : colour.muted, row.of === target.of ? [] : [3, 3]);
  const at = hover ?? head;
  if (at !== null && at < steps) drawUpright(g, b, X(at), colour.muted);
  drawOther(g, b, row, X, Y);
  g.save(); g.strokeStyle = colour.down; g.setLineDash([6, 4]); g.lineWidth = 1;
  for (const { line } of linesOf(row)) drawLine(g, line, X, Y);
  g.restore();
  if (row.fires && hasBump()) drawBump(g, b, row, Y);
  paintTo(g, b, steps, 0.15, () => paintRow(g, b, row, values, X, Y));
  if (row.kind === "input" && document.activeElement === row.canvas) {
    g.fillStyle = colour.ink;
    g.beginPath(); g.arc(X(cursor), Y(values[cursor]), 4, 0, 7); g.fill();
  }
  read(row);
}

function paintRow(g, b, row, values, X, Y) {
  g.fillStyle = g.strokeStyle = colour[row.colour];
  g.lineJoin = "round";
  if (row.before) { g.lineWidth = 1; drawBefore(g, row.before, values, X, Y); }
  g.lineWidth = 1.6;
  if (row.kind === "input") drawStairs(g, b, values, Y);
  else if (row.kind === "gradient" || (row.kind === "output" && current().spiking)) drawBars(g, b, values, Y, row.kind === "output");
  else drawLine(g, values, X, Y);
  if (row.membrane && current().spiking) drawSpikes(g, b, X, run.output);
  if (row.kind === "other" && run.other.neuron.spiking) drawSpikes(g, b, X, run.other.output);
}

// from the membrane up to where it was before its reset, where that differs
function drawBefore(g, before, values, X, Y) {
  before.forEach((value, t) => {
    if (!Number.isFinite(value) || Math.abs(Y(value) - Y(values[t])) < 1.5) return;
    const alpha = g.globalAlpha;
    g.globalAlpha = 0.6 * alpha;
    g.beginPath(); g.moveTo(X(t), Y(values[t])); g.lineTo(X(t), Y(value)); g.stroke();
    g.globalAlpha = alpha;
    g.beginPath(); g.arc(X(t), Y(value), 1.8, 0, 7); g.fill();
  });
}

function drawOther(g, b, row, X, Y) {
  const values = otherOf(row);
  if (!values) return;
  g.save();
  g.strokeStyle = g.fillStyle = kept ? colour.c1 : colour.muted;
  g.globalAlpha = kept ? 0.75 : 0.45;
  g.lineWidth = 1.2;
  if (row.kind === "output" && current().spiking) {
    values.forEach((value, t) => { if (value) g.fillRect(X(t) - 1, Y(0) + (value > 0 ? -3 : 3), 2, 5); });
  } else drawLine(g, values, X, Y);
  g.restore();
}

// the derivative of the spike function, by the value of the membrane: how far from its line it learns
function drawBump(g, b, row, Y) {
  const [low, high] = row.extent, at = hover ?? head ?? stepCount() - 1, count = Math.max(8, Math.round(b.h / 2));
  const values = Array.from({ length: count + 1 }, (_, k) => low + (high - low) * k / count), x = b.x + b.w + 6;
  g.save();
  g.fillStyle = g.strokeStyle = colour.c2;
  for (const { line, sign } of linesOf(row)) {
    const slopes = bumpAt(values, line[Math.min(at, line.length - 1)], sign), most = Math.max(...slopes, bumpAt([line.at(-1)], line.at(-1), sign)[0]);
    const along = (k) => x + (most ? slopes[k] / most : 0) * (BUMP - 6);
    g.beginPath(); g.moveTo(x, Y(values[0]));
    values.forEach((each, k) => g.lineTo(along(k), Y(each)));
    g.lineTo(x, Y(values.at(-1)));
    g.globalAlpha = 0.25; g.fill(); g.globalAlpha = 1; g.stroke();
  }
  g.font = FONT; g.textAlign = "left"; g.textBaseline = "alphabetic";
  if (!narrow.matches) g.fillText("∂ spike", x, b.y - 6); // else what is read of the row is there
  g.restore();
}

// small triangles where the neuron fires: upward spikes above the membrane, downward ones below
function drawSpikes(g, b, X, output) {
  output.forEach((value, t) => {
    if (value === 0 || !Number.isFinite(value)) return;
    const up = value > 0, y = up ? b.y - 3 : b.y + b.h + 4, way = up ? 1 : -1;
    g.fillStyle = up ? colour.accent : colour.down;
    g.beginPath(); g.moveTo(X(t), y + 6 * way); g.lineTo(X(t) - 3, y); g.lineTo(X(t) + 3, y); g.fill();
  });
}

// the values beside the name of a row: at the pointer, the play head or the chosen step, else a summary
function read(row) {
  const at = hover ?? head ?? (settings.target.all ? null : settings.target.step), values = row.values();
  if (at !== null && at < values.length) { row.out.textContent = `step ${at}: ${brief(values[at])}`; return; }
  const fired = (row.kind === "other" ? run.other.output : values).reduce((count, value) => count + (value !== 0), 0);
  const hints = [linesOf(row).length ? "dashed: where it fires" : "", row.before ? "dots: before the reset" : row.membrane && current().spiking ? "after the reset" : ""];
  const spikes = row.kind === "other" ? run.other.neuron.spiking : row.kind === "output" && current().spiking;
  row.out.textContent = spikes ? plural(fired, "spike")
    : row.kind === "gradient" ? `of sum of ${words(settings.target.of)}; peak ${largest()}`
      : row.kind === "input" ? "draw here" : hints.filter(Boolean).join("; ");
  if (row.kind !== "gradient" && row.kind !== "output" && values.some((value) => !Number.isFinite(value))) row.out.textContent = "not finite";
}

function largest() {
  let step = 0;
  run.dX.forEach((value, t) => { if (Math.abs(value) > Math.abs(run.dX[step])) step = t; });
  return run.dX[step] === 0 ? "0 at every step" : `${brief(run.dX[step])} at step ${step}`;
}

// ---- pointer and keys

let cursor = 0;
const stepAt = (row, event) => {
  const b = box(row);
  return clamp(Math.floor((event.clientX - row.canvas.getBoundingClientRect().left - b.x) / b.w * stepCount()), 0, stepCount() - 1);
};

function drawn() {
  const now = input();
  if (now.kind !== "drawn" || now.drawn.length !== stepCount()) setInput({ kind: "drawn", drawn: inputs().map((each) => Math.round(100 * each) / 100) });
  return input().drawn;
}

function listen(row) {
  const { canvas } = row;
  let last = null; // where the hand was
  const put = (event) => {
    const b = box(row), [low, high] = row.frozen, t = stepAt(row, event);
    const y = clamp((event.clientY - canvas.getBoundingClientRect().top - b.y) / b.h, 0, 1);
    const value = Math.round(100 * (high - y * (high - low)) / current().unit) / 100;
    // steps between two positions of a fast hand are filled in
    const from = last ?? { t, value }, hand = drawn();
    for (let k = Math.min(t, from.t); k <= Math.max(t, from.t); k++) {
      const share = t === from.t ? 1 : (k - from.t) / (t - from.t);
      hand[k] = Math.round(100 * (from.value + share * (value - from.value))) / 100;
    }
    last = { t, value };
    cursor = t;
    update();
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    if (row.kind === "input") {
      drawn();
      row.frozen = extent(row); // with the room that a drawn input has
      canvas.setPointerCapture(event.pointerId);
      put(event);
    } else if (row.of && settings.gradients) {
      Object.assign(settings.target, { of: current().shown.includes(row.of) ? row.of : "output", step: stepAt(row, event), all: false });
      update();
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    hover = stepAt(row, event);
    if (row.frozen) put(event); else redraw();
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(name, () => { row.frozen = undefined; last = null; redraw(); });
  }
  canvas.addEventListener("pointerleave", () => { hover = null; redraw(); });
  if (row.kind !== "input") return;
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, redraw);
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -stepCount(), End: stepCount() }[event.key];
    const change = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey || (move === undefined && change === undefined)) return;
    event.preventDefault();
    if (move !== undefined) cursor = clamp(cursor + move, 0, stepCount() - 1);
    else {
      const hand = drawn();
      hand[cursor] = Math.round(100 * (hand[cursor] + change * (event.shiftKey ? 0.01 : 0.1))) / 100;
    }
    update();
  });
}

