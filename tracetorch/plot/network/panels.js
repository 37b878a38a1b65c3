// What is beside time: the plane of inputs, the losses, and what stands in for the slope of a spike.
const CELLS = 24; // of the map in either direction
const NEAR = 2; // thresholds on either side of the bump

// ---- the map: what the network says of every point of the plane

let area = null, map = null; // `map`: of each cell the class and how sure
const plane = () => sets.length > 0 && features === 2 && set().form !== "sequences";
function boundsOf({ form, numbers, steps, held }) {
  if (form === "times") return [-0.5, steps - 0.5];
  const all = held?.form === form ? [...numbers, ...held.numbers] : numbers;
  const most = all.reduce((found, each) => Math.max(found, Math.abs(each)), 0) * 1.15 || 1;
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
  const { g, width, height } = fitted(byId("map")), { numbers, labels, form, held } = set();
  const scale = (value) => (value - area[0]) / (area[1] - area[0]);
  const edge = (k, size) => Math.round(k / CELLS * size); // whole pixels, so that cells do not overlap
  map.forEach((row, j) => row.forEach(([best, share], i) => {
    g.globalAlpha = 0.1 + 0.5 * clamp((share * classes - 1) / (classes - 1), 0, 1);
    g.fillStyle = classColour(best);
    const x = edge(i, width), y = edge(CELLS - j - 1, height);
    g.fillRect(x, y, edge(i + 1, width) - x, edge(CELLS - j, height) - y);
  }));
  g.globalAlpha = 1;
  const point = (all, k, radius) => { g.beginPath(); g.arc(scale(all[2 * k]) * width, (1 - scale(all[2 * k + 1])) * height, radius, 0, 7); };
  if (held?.form === form) held.labels.forEach((label, k) => {
    point(held.numbers, k, 3);
    g.lineWidth = 1.5; g.strokeStyle = classColour(label); g.stroke();
  });
  labels.forEach((label, k) => {
    const chosen = settings.source === "sample" && k === settings.sample;
    point(numbers, k, chosen ? 6 : 3.5);
    g.fillStyle = classColour(label); g.fill();
    g.lineWidth = chosen ? 2.5 : 1; g.strokeStyle = chosen || verdict.said[k] !== label ? colour.ink : colour.panel; g.stroke();
  });
  g.font = FONT; g.fillStyle = colour.ink;
  g.textAlign = "right"; g.textBaseline = "bottom";
  const unit = form === "times" ? "spike of input" : "input";
  g.fillText(`${unit} 0 →`, width - 4, height - 3);
  g.textAlign = "left"; g.textBaseline = "top";
  g.fillText(`↑ ${unit} 1`, 4, 4);
}

function showKey() {
  const dots = Array.from({ length: classes }, (_, k) => {
    const dot = make("i");
    dot.style.background = classColour(k);
    return make("span", {}, dot, `class ${k}`);
  });
  byId("key").replaceChildren(...dots, ...(set().held?.form === set().form ? [make("span", {}, make("i", { class: "ring" }), "held out")] : []));
}

function chooseNearest(event) {
  const frame = byId("map").getBoundingClientRect(), { numbers, labels } = set(), span = area[1] - area[0];
  const x = area[0] + (event.clientX - frame.left) / frame.width * span, y = area[1] - (event.clientY - frame.top) / frame.height * span;
  const far = labels.map((_, k) => Math.hypot(numbers[2 * k] - x, numbers[2 * k + 1] - y));
  choose(far.indexOf(Math.min(...far)));
}

// ---- losses: of what is trained on as lines, of what is held out dashed

function drawLosses() {
  const { g, width, height } = fitted(byId("losses")), b = { x: 34, y: 20, w: width - 80, h: height - 38 };
  const held = history.filter((each) => each.held), all = [...history, ...held.map((each) => each.held)];
  const [low, high] = rounded(0, Math.max(ends([all.map(({ loss }) => loss)])[1], Math.log(classes)));
  const Y = (value) => b.y + (high - value) / (high - low) * b.h, last = Math.max(history.length - 1, 20);
  const X = (k) => b.x + k / last * b.w, heldX = (k) => X(held[k].update);
  drawValues(g, b, [low, high], Y);
  drawScale(g, b, 0, last, X, "update");
  g.lineWidth = 1.6;
  for (const [style, value] of [[colour.c2, ({ right }) => high * right], [colour.ink, ({ loss }) => loss]]) {
    g.strokeStyle = style;
    drawLine(g, history.map(value), X, Y);
    g.setLineDash([4, 3]);
    drawLine(g, held.map((each) => value(each.held)), heldX, Y);
    g.setLineDash([]);
  }
  g.font = FONT; g.textBaseline = "middle"; g.textAlign = "left";
  g.fillStyle = colour.c2;
  for (const share of [0, 0.5, 1]) g.fillText(`${100 * share} %`, b.x + b.w + 5, clamp(Y(high * share), b.y + 4, b.y + b.h - 2));
  g.textBaseline = "top"; g.textAlign = "right"; g.fillText("share right", width - 2, 2);
  g.textAlign = "left"; g.fillStyle = colour.ink; g.fillText(set().held ? "loss, dashed: held out" : "loss", 4, 2);
  const now = history.at(-1);
  byId("losses").setAttribute("aria-label", `loss and share right over ${plural(history.length, "update")}${now ? `: from ${history[0].loss.toFixed(3)} and ${(100 * history[0].right).toFixed(0)} % to ${now.loss.toFixed(3)} and ${(100 * now.right).toFixed(0)} %` : ""}`);
}

// ---- the gradient: how near to their thresholds neurons are, and what a spike passes back there

function drawBump() {
  const { g, width, height } = fitted(byId("bump")), b = { x: 8, y: 8, w: width - 16, h: height - 28 };
  const layer = run.layers.find((each) => each.distances), X = (u) => b.x + (clamp(u, -NEAR, NEAR) + NEAR) / (2 * NEAR) * b.w;
  const grid = Array.from({ length: 161 }, (_, k) => NEAR * (k / 80 - 1)), slopes = bumpAt(layer.layer, grid), most = Math.max(...slopes);
  const Y = (slope) => b.y + (1 - slope / most) * b.h;
  g.fillStyle = g.strokeStyle = colour.c2;
  g.globalAlpha = 0.25;
  g.beginPath(); g.moveTo(X(-NEAR), Y(0)); grid.forEach((u, k) => g.lineTo(X(u), Y(slopes[k]))); g.lineTo(X(NEAR), Y(0)); g.fill();
  g.globalAlpha = 1;
  drawUpright(g, b, Math.round(X(0)) + 0.5, colour.muted, [4, 3]);
  const at = stepShown(), shown = run.layers.filter((each) => each.distances).flatMap(({ layer: { bump }, distances }) => {
    const us = distances.flatMap((lane) => at === null || at >= run.steps ? [...lane] : [lane[at]]);
    return [...bumpAt({ bump }, us)].map((slope, k) => [us[k], slope]);
  });
  g.fillStyle = colour.ink;
  g.globalAlpha = at === null ? 0.25 : 0.8;
  for (const [u, slope] of shown) { g.beginPath(); g.arc(X(u), Y(slope), 3, 0, 7); g.fill(); }
  g.globalAlpha = 1;
  drawScale(g, b, -NEAR, NEAR, X, "from threshold");
  const near = shown.filter(([, slope]) => slope >= most / 2).length;
  byId("passing").textContent = at === null || at >= run.steps ? `All steps: a spike passes at least half in ${Math.round(100 * near / shown.length)} % of all cases.`
    : `Step ${at}: ${near} of ${plural(shown.length, "neuron")} pass at least half.`;
  byId("bump").setAttribute("aria-label", `what stands in for the slope of a spike, over the distance of the membrane from its threshold. ${byId("passing").textContent}`);
}
