// The input and every layer over time, one row of plots below the other. Colours of classes are for
// nothing else: the outputs, and the spikes of the last hidden layer, by the class they speak for.
const MOST_LINES = 8; // more units are an image
const classColour = (k) => colour[`c${[0, 1, 3, 7, 6, 2, 4, 5][k % 8]}`];
// Inputs and other neurons have no colour: they are told apart by their dashes, and by their numbers.
const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3]];
const signColour = (value) => value < 0 ? colour.c4 : colour.c5;
const SIGNS = "teal above 0, orange below";

let rows = [], hover = null;
function buildRows() {
  const { layers } = network, back = ROWS[settings.rows] === "gradient" && settings.source === "sample";
  const events = settings.source === "sample" && set().form === "times";
  rows = [{ name: "input", kind: events ? "spikes" : "input", values: () => run.x, size: features, colourOf: null }];
  layers.forEach((layer, k) => {
    const { name, title, size } = layer, values = () => run.layers[k].output, speaks = k >= layers.length - 2 && size === classes;
    const colourOf = speaks ? classColour : null;
    if (layer.kind === "linear") {
      // of several hidden layers that are alike, what comes into each is left out
      if (layers.length <= 4 || k >= layers.length - 2 || !isRegular(net())) rows.push({ name: `${name}: ${title}`, kind: "product", values, size, colourOf });
      return;
    }
    const place = layer.states.indexOf(layer.shown), record = () => run.layers[k].record.map((each) => each[place]);
    // the output of a layer that does not fire is its membrane
    if (layer.spiking || layer.shown !== "mem") rows.push({ name: `${name}: ${title}, ${words(layer.shown)}`, kind: "state", values: record, size, colourOf });
    if (layer.spiking) rows.push({ name: `${name}: spikes`, kind: "spikes", values, size, colourOf: votesOf(k), votes: votesOf(k) !== null });
    else rows.push({ name: `${name}: ${title}, output`, kind: "output", values, size, colourOf });
    if (back && k < layers.length - 1) rows.push({ name: `${name}: what flows back`, kind: "gradient", values: () => run.layers[k].flow, size, colourOf });
  });
  rows.forEach((row, k) => {
    row.last = k === rows.length - 1;
    row.lines = row.size <= MOST_LINES && row.kind !== "spikes";
    row.grow = k ? 1 : 0.8;
    makeRow(row, k, { role: "img" });
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

// For a spike of a neuron whose next layer is the classes': the class that it raises most.
function votesOf(k) {
  const next = network.layers[k + 1];
  if (next?.kind !== "linear" || next.size !== classes || k + 1 < network.layers.length - 2) return null;
  return (unit, value) => {
    const scores = Array.from({ length: classes }, (_, c) => value * next.tensors[0].values[c * next.inputs + unit]);
    return classColour(winner(scores));
  };
}

const box = (row) => boxOf(row.canvas, row.last ? AXIS : 5);

function draw(row) {
  const { g } = fitted(row.canvas), b = box(row), values = row.values(), steps = run.steps;
  const X = (t) => b.x + (t + 0.5) / steps * b.w;
  paintTo(g, b, steps, 0.2, row.lines ? paintLines(g, b, row, values, X) : paintUnits(g, b, row, values));
  if (row.last) drawScale(g, b, 0, steps - 1, X, "step");
  const at = stepShown();
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
      g.strokeStyle = g.fillStyle = row.colourOf ? row.colourOf(k) : k < DASHES.length ? colour.ink : colour.muted;
      g.setLineDash(row.colourOf ? [] : DASHES[k % DASHES.length]);
      drawLine(g, each, X, Y);
      g.setLineDash([]);
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
      g.fillStyle = !spikes ? signColour(value) : row.colourOf ? row.colourOf(k, value) : value < 0 ? colour.muted : colour.ink;
      const x = Math.round(b.x + t * wide), y = Math.round(b.y + k * high); // whole pixels do not overlap
      if (spikes) g.fillRect(x, y, Math.max(1.5, 0.7 * wide), Math.max(1, 0.8 * high));
      else g.fillRect(x, y, Math.round(b.x + (t + 1) * wide) - x, Math.round(b.y + (k + 1) * high) - y);
    }));
    g.restore();
  };
}

const stepShown = () => hover?.step ?? head;
function read(row, values) {
  const count = () => values.reduce((sum, each) => sum + each.reduce((all, value) => all + (value !== 0), 0), 0);
  const at = stepShown();
  const hint = row.kind === "gradient" ? `${row.lines ? "below 0" : "orange"}: more input lowers the loss` : row.lines ? "" : SIGNS;
  if (hover?.row === row && !row.lines) row.out.textContent = `neuron ${hover.unit}, step ${hover.step}: ${brief(values[hover.unit][hover.step])}`;
  else if (at !== null && at < run.steps && row.lines) row.out.textContent = `step ${at}: ${values.map((each) => brief(each[at])).join(", ")}`;
  else if (at !== null && at < run.steps && row.kind === "spikes") row.out.textContent = `step ${at}: ${plural(values.filter((each) => each[at] !== 0).length, "spike")}`;
  else row.out.textContent = row.kind === "spikes" ? `${plural(count(), "spike")}${row.votes ? ", in the colour of the class each speaks for" : ""}` : hint;
  row.canvas.setAttribute("aria-label", `${row.name} over ${plural(run.steps, "step")}. ${row.out.textContent}`);
}
