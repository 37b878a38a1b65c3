// Axes and traces of a plot. X(step) and Y(value) give its pixels; `b` is its box.
const FONT = "11px system-ui, sans-serif";
const RIGHT = 14, AXIS = 18; // margins of a plot, in CSS pixels; AXIS under the last one
const narrow = matchMedia("(max-width: 620px)");

// The box of a plot: beside its values, under its name, `right` and `under` it what else there is.
function boxOf(canvas, under, right = 0) {
  const x = narrow.matches ? 42 : 52, y = narrow.matches ? 17 : 21;
  return { x, y, w: Math.max(1, canvas.clientWidth - x - RIGHT - right), h: Math.max(1, canvas.clientHeight - y - under) };
}

// What comes after the play head is faint.
function paintTo(g, b, steps, faint, paint) {
  if (head === null) { paint(); return; }
  for (const [alpha, from, to] of [[1, 0, head / steps], [faint, head / steps, 1]]) {
    g.save();
    g.beginPath(); g.rect(b.x + from * b.w, 0, (to - from) * b.w, g.canvas.clientHeight); g.clip();
    g.globalAlpha = alpha;
    paint();
    g.restore();
  }
}

// A row of plots: its canvas, its name, and what is read of it.
function makeRow(row, data, canvas) {
  row.canvas = make("canvas", canvas);
  row.out = make("output");
  row.element = make("div", { class: "row", "data-row": data }, row.canvas, make("p", {}, make("b", {}, row.name), row.out));
  row.element.style.flexGrow = row.grow;
}

// lowest and highest value, with 0, rounded outwards so that the axis seldom moves
function rounded(low, high) {
  if (low === high) { low = -1; high = 1; }
  const [first, second] = ticks(low, high, 5), step = second - first, room = 0.06 * (high - low);
  return [low < 0 ? Math.floor((low - room) / step * 2) * step / 2 : 0, high > 0 ? Math.ceil((high + room) / step * 2) * step / 2 : 0];
}

function ends(lists) {
  let low = 0, high = 0;
  for (const list of lists) for (const value of list) {
    if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  return [low, high];
}

// Values on the left, with a line each.
function drawValues(g, b, [low, high], Y) {
  g.font = FONT;
  g.lineWidth = 1;
  g.fillStyle = colour.muted;
  g.strokeStyle = colour.line;
  g.textAlign = "right";
  g.textBaseline = "middle";
  for (const tick of ticks(low, high, clamp(Math.floor(b.h / 26), 2, 4))) {
    const y = Math.round(Y(tick)) + 0.5;
    g.beginPath(); g.moveTo(b.x, y); g.lineTo(b.x + b.w, y); g.stroke();
    g.fillText(brief(tick), b.x - 6, clamp(y, b.y + 4, b.y + b.h - 2));
  }
}

// Numbers under a plot, from `low` to `high`, and what they count at the right end.
function drawScale(g, b, low, high, place, name) {
  g.font = FONT;
  g.fillStyle = colour.muted;
  g.textAlign = "right";
  g.textBaseline = "alphabetic";
  const from = b.x + b.w - g.measureText(name).width - 14;
  g.fillText(name, b.x + b.w, b.y + b.h + 13);
  g.textAlign = "center";
  for (const tick of ticks(low, high, b.w / 80)) if (place(tick) < from) g.fillText(brief(tick), place(tick), b.y + b.h + 13);
}

function drawUpright(g, b, x, style, dash = []) {
  g.save(); g.strokeStyle = style; g.setLineDash(dash); g.lineWidth = 1;
  g.beginPath(); g.moveTo(x, b.y - 3); g.lineTo(x, b.y + b.h); g.stroke(); g.restore();
}

function drawLine(g, values, X, Y) {
  g.beginPath();
  let drawing = false; // a value that is not finite is a gap
  values.forEach((value, t) => {
    if (!Number.isFinite(value)) { drawing = false; return; }
    if (drawing) g.lineTo(X(t), Y(value)); else g.moveTo(X(t), Y(value));
    drawing = true;
  });
  g.stroke();
}

function drawStairs(g, b, values, Y) {
  const edge = (t) => b.x + t / values.length * b.w;
  const trace = () => values.forEach((value, t) => { g.lineTo(edge(t), Y(value)); g.lineTo(edge(t + 1), Y(value)); });
  const alpha = g.globalAlpha;
  g.beginPath(); g.moveTo(edge(0), Y(0)); trace(); g.lineTo(edge(values.length), Y(0));
  g.globalAlpha = 0.18 * alpha; g.fill(); g.globalAlpha = alpha;
  g.beginPath(); trace(); g.stroke();
}

function drawBars(g, b, values, Y, spikes) {
  const wide = b.w / values.length, width = spikes ? Math.max(1.5, 0.6 * wide) : Math.max(1, 0.8 * wide);
  values.forEach((value, t) => {
    if (!Number.isFinite(value) || value === 0) return;
    g.fillStyle = value < 0 ? colour.down : colour[spikes ? "accent" : "c0"];
    g.fillRect(b.x + (t + 0.5) * wide - width / 2, Math.min(Y(0), Y(value)), width, Math.abs(Y(value) - Y(0)));
  });
  g.fillStyle = colour.muted;
  g.fillRect(b.x, Math.round(Y(0)), b.w, 1);
}

let colour = {};
function readColours() {
  colour = page.colours("ink", "muted", "line", "panel", "accent", "down", ...Array.from({ length: 8 }, (_, k) => `c${k}`));
}
