// Pictures beside time: the spikes of constant inputs, and the plane of two states.
function drawPanels() {
  const twoStates = planeOf(current()), spikes = current().spiking;
  byId("curve").hidden = !spikes;
  byId("plane").hidden = !twoStates;
  byId("panels").hidden = !spikes && !twoStates;
  byId("curve").querySelector("output").textContent = settings.pair ? "of constant inputs, without the other" : "of constant inputs";
  if (spikes) drawCurve();
  if (twoStates) drawPlane(twoStates);
}

// the f-I curve: how often the neuron fires under a constant input
function drawCurve() {
  const canvas = byId("curve").querySelector("canvas"), { g } = fitted(canvas), b = boxOf(canvas, AXIS);
  const behind = kept?.run ?? (ghost?.neuron === run.neuron ? ghost : null);
  const other = behind?.rates?.map(({ amplitude, rate }) => ({ amplitude: amplitude * behind.neuron.unit / run.neuron.unit, rate })), curves = [other ?? [], run.rates];
  const [low, high] = rounded(0, ends(curves.map((each) => each.map(({ rate }) => rate)))[1]);
  const from = run.rates[0].amplitude, to = run.rates.at(-1).amplitude;
  const { unit } = run.neuron; // the axis has the layer's own input, as the trace above
  const X = (amplitude) => b.x + (amplitude - from) / (to - from) * b.w, Y = (rate) => b.y + (high - rate) / (high - low) * b.h;
  drawValues(g, b, [low, high], Y);
  drawScale(g, b, unit * from, unit * to, (x) => X(x / unit), "input");
  const { kind, amplitude } = input();
  if (kind === "constant" || kind === "pulses") drawUpright(g, b, X(amplitude), colour.ink, [3, 3]);
  const curve = (points) => { g.beginPath(); points.forEach((each) => { if (each.amplitude >= from && each.amplitude <= to) g.lineTo(X(each.amplitude), Y(each.rate)); }); g.stroke(); };
  if (other) { g.strokeStyle = kept ? colour.c1 : colour.muted; g.lineWidth = 1.2; g.globalAlpha = kept ? 0.75 : 0.45; curve(other); g.globalAlpha = 1; }
  g.strokeStyle = colour.c0; g.lineWidth = 1.8; g.lineJoin = "round";
  curve(run.rates);
  canvas.setAttribute("aria-label", `spikes in 100 steps of constant inputs from ${brief(unit * from)} to ${brief(unit * to)}: up to ${brief(Math.max(...run.rates.map(({ rate }) => rate)))}`);
}

// the plane: the way of the two states, what one step does at every point, and where either stays
function drawPlane([first, second]) {
  const canvas = byId("plane").querySelector("canvas"), { g } = fitted(canvas), b = boxOf(canvas, AXIS), steps = stepCount();
  const p = run.record[first], q = run.record[second], names = [run.neuron.states[first], run.neuron.states[second]];
  const wide = (list, start) => {
    const finite = [...list, start].filter(Number.isFinite), low = Math.min(...finite), high = Math.max(...finite), room = 0.12 * (high - low) || 1;
    return [low - room, high + room];
  };
  const [pLow, pHigh] = wide(p, run.start[first]), [qLow, qHigh] = wide(q, run.start[second]);
  const X = (value) => b.x + (value - pLow) / (pHigh - pLow) * b.w, Y = (value) => b.y + (qHigh - value) / (qHigh - qLow) * b.h;
  drawValues(g, b, [qLow, qHigh], Y);
  drawScale(g, b, pLow, pHigh, X, words(names[0]));
  byId("plane").querySelector("b").textContent = `${words(names[1])} over ${words(names[0])}`;
  byId("plane").querySelector("output").replaceChildren("dots: where ", ...[colour.c4, colour.c2].flatMap((paint, k) => [k ? ", " : "", make("span", { style: `color: ${paint}` }, words(names[k]))]), " stays");
  const at = hover ?? head ?? null, x = at !== null && at < steps ? run.total[at] : ["constant", "pulses"].includes(input().kind) ? current().unit * input().amplitude : 0;
  g.save();
  g.beginPath(); g.rect(b.x, b.y, b.w, b.h); g.clip();
  drawArrows(g, b, [pLow, pHigh], [qLow, qHigh], x);
  drawNullclines(g, X, Y, [pLow, pHigh], [qLow, qHigh], x);
  g.strokeStyle = colour.c0; g.lineJoin = "round";
  const end = at === null ? steps : at + 1, way = (from, to) => { g.beginPath(); for (let t = from; t < to; t++) g.lineTo(X(p[t]), Y(q[t])); g.stroke(); };
  g.lineWidth = 1; g.globalAlpha = at === null ? 0.9 : 0.3; way(0, steps);
  if (at !== null) { g.lineWidth = 1.6; g.globalAlpha = 1; way(Math.max(0, end - 40), end); }
  g.globalAlpha = 1; g.fillStyle = colour.ink;
  const now = Math.min(end, steps) - 1;
  g.beginPath(); g.arc(X(p[now]), Y(q[now]), 4, 0, 7); g.fill();
  g.restore();
  canvas.setAttribute("aria-label", `${words(names[1])} over ${words(names[0])}: the states at ${plural(steps, "step")}`);
}

function drawArrows(g, b, [pLow, pHigh], [qLow, qHigh], x) {
  const columns = Math.max(4, Math.round(b.w / 26)), lines = Math.max(3, Math.round(b.h / 24));
  g.strokeStyle = colour.muted; g.lineWidth = 1;
  for (let i = 0; i < columns; i++) for (let j = 0; j < lines; j++) {
    const [dp, dq] = moveFrom(pLow + (i + 0.5) / columns * (pHigh - pLow), qLow + (j + 0.5) / lines * (qHigh - qLow), x);
    let dx = dp / (pHigh - pLow) * b.w, dy = -dq / (qHigh - qLow) * b.h;
    const long = Math.hypot(dx, dy), size = Math.min(long, 9);
    if (!(long > 0.05) || !Number.isFinite(long)) continue;
    dx *= size / long; dy *= size / long;
    const px = b.x + (i + 0.5) / columns * b.w, py = b.y + b.h - (j + 0.5) / lines * b.h;
    g.globalAlpha = 0.55;
    g.beginPath(); g.moveTo(px, py); g.lineTo(px + dx, py + dy); g.stroke();
    g.fillStyle = colour.muted; g.beginPath(); g.arc(px + dx, py + dy, 1.3, 0, 7); g.fill();
  }
  g.globalAlpha = 1;
}

// Where one step leaves a state alone: changes of sign between neighbours of a grid.
function drawNullclines(g, X, Y, [pLow, pHigh], [qLow, qHigh], x) {
  const columns = 56, lines = 36, p = (i) => pLow + i / columns * (pHigh - pLow), q = (j) => qLow + j / lines * (qHigh - qLow);
  const moves = Array.from({ length: columns + 1 }, (_, i) => Array.from({ length: lines + 1 }, (_, j) => moveFrom(p(i), q(j), x)));
  run.stays = [[], []]; // the points of each curve
  for (const [k, paint] of [[0, colour.c4], [1, colour.c2]]) {
    g.fillStyle = paint;
    for (let i = 0; i <= columns; i++) for (let j = 0; j <= lines; j++) {
      const [, , spiked] = moves[i][j], here = moves[i][j][k];
      for (const [i2, j2] of [[i + 1, j], [i, j + 1]]) {
        const there = moves[i2]?.[j2]?.[k];
        // where only one of them spikes, the sign changes by the reset, and is no crossing
        if (there === undefined || here === there || here * there > 0 || moves[i2][j2][2] !== spiked) continue;
        const share = here / (here - there), point = [p(i) + share * (p(i2) - p(i)), q(j) + share * (q(j2) - q(j))];
        run.stays[k].push(point);
        g.beginPath(); g.arc(X(point[0]), Y(point[1]), 1.2, 0, 7); g.fill();
      }
    }
  }
}
