(() => {
  const { byId, clamp, make, fitted } = page;
  // `stages` are the printed functions of one time step on the arrays of one object
  const { title, height, width, steps, decode, classes, samples, pen, layers, program } = JSON.parse(byId("network").textContent);
  const TICK = 90; // milliseconds of a time step while it plays
  const BUDGET = 12; // milliseconds of a frame that the network may take
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const brief = (value) => Number.isFinite(value) ? String(+value.toPrecision(3)).replace("-", "−") : "not finite";
  const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

  // ---- the network: arrays, and one step after the other

  const KINDS = { float: Float32Array, bool: Uint8Array, uint8_t: Uint8Array, uint16_t: Uint16Array, uint32_t: Uint32Array };
  function decoded(text, kind) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new KINDS[kind](bytes.buffer);
  }
  const arrays = {}, starts = {};
  for (const [name, [kind, size]] of Object.entries(program.arrays)) {
    const values = program.values[name] === undefined ? new KINDS[kind](size) : decoded(program.values[name], kind);
    if (program.states.includes(name)) starts[name] = values.slice();
    arrays[name] = values;
  }
  const images = samples.map((each) => decoded(each.image, "float"));

  let run; // outputs of every step so far
  function begin(image) {
    for (const name of program.states) arrays[name].set(starts[name]);
    run = { image, done: 0, y: [], spikes: layers.map(() => []) };
    document.body.dataset.ready = "false";
    wake();
  }

  function step() {
    arrays[program.input].set(run.image);
    for (const stage of stages) stage(arrays);
    run.y.push(Float32Array.from(arrays[program.output]));
    layers.forEach((layer, i) => run.spikes[i].push(Float32Array.from(arrays[layer.output])));
    run.done++;
  }

  // what is read out of the first `count` steps
  function readout(count) {
    if (!count) return classes.map(() => 0);
    const seen = run.y.slice(0, count);
    if (decode === "last") return [...seen.at(-1)];
    return classes.map((_, k) => decode === "max" ? Math.max(...seen.map((y) => y[k])) : seen.reduce((sum, y) => sum + y[k], 0) / count);
  }
  const best = (values) => values.reduce((top, value, k) => value > values[top] ? k : top, 0);

  // ---- the drawing: strokes of a pen, or a given image

  // Points of strokes are in widths of the pad.
  let strokes = [], given = null;
  const isEmpty = () => given === null && strokes.length === 0;

  // Distances of pixels from the strokes give an image with soft edges, the same in every browser.
  function coverage(lines, wide) {
    const image = new Float64Array(height * width);
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      let nearest = Infinity;
      for (const points of lines) for (let i = 0; i < points.length; i++) {
        const [ax, ay] = points[Math.max(i - 1, 0)], [bx, by] = points[i];
        const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
        const share = length === 0 ? 0 : clamp(((x + 0.5 - ax) * dx + (y + 0.5 - ay) * dy) / length, 0, 1);
        nearest = Math.min(nearest, Math.hypot(x + 0.5 - ax - share * dx, y + 0.5 - ay - share * dy));
      }
      image[y * width + x] = clamp(wide / 2 + 0.5 - nearest, 0, 1);
    }
    return image;
  }

  // Scaled and centred as the data: the longer side, then the centre of mass.
  function pictured() {
    const image = new Float32Array(height * width).fill(pen.background);
    if (strokes.length === 0) return image;
    const points = strokes.flat();
    const ends = [0, 1].map((i) => [Math.min(...points.map((p) => p[i])), Math.max(...points.map((p) => p[i]))]);
    const side = Math.max(ends[0][1] - ends[0][0], ends[1][1] - ends[1][0]);
    // what is small stays small: a dot is no digit
    const scale = Math.min(Math.max(pen.extent - pen.width, 1) / Math.max(side, 1e-9), 4 * width);
    const placed = (shift) => strokes.map((line) => line.map((p) => p.map((v, i) => (v - (ends[i][0] + ends[i][1]) / 2) * scale + pen.centre[i] + shift[i])));
    let ink = coverage(placed([0, 0]), pen.width), mass = 0, x = 0, y = 0;
    ink.forEach((v, i) => { mass += v; x += v * (i % width + 0.5); y += v * (Math.floor(i / width) + 0.5); });
    if (mass > 0) ink = coverage(placed([pen.centre[0] - x / mass, pen.centre[1] - y / mass]), pen.width);
    ink.forEach((v, i) => { image[i] = pen.background + (pen.ink - pen.background) * v; });
    return image;
  }

  function changed(plays) {
    begin(given === null ? pictured() : images[given]);
    playing = plays && !still.matches && !isEmpty();
    shown = playing ? 0 : steps;
    ticked = performance.now();
    byId("samples").childNodes.forEach((button, i) => button.setAttribute("aria-pressed", String(i === given)));
  }

  // a sample, or nothing, takes the place of what was drawn, and ends a stroke that is being drawn
  function reset(image) {
    strokes = [];
    given = image;
    pressed = null;
    lower(false);
    changed(image !== null);
  }
  const clear = () => reset(null);

  // ---- pointer and keys on the pad

  const pad = byId("pad");
  let pressed = null; // the pointer that draws
  const place = (event) => {
    const frame = pad.getBoundingClientRect();
    return [clamp((event.clientX - frame.left) / frame.width, 0, 1), clamp((event.clientY - frame.top) / frame.width, 0, height / width)];
  };
  function start(point) {
    given = null;
    strokes.push([point]);
  }
  pad.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || pressed !== null) return;
    pressed = event.pointerId;
    pad.setPointerCapture(pressed);
    keyed = false;
    lower(false);
    start(place(event));
    changed(false);
  });
  pad.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pressed) return;
    const line = strokes.at(-1), [x, y] = place(event), [fromX, fromY] = line.at(-1);
    if (Math.hypot(x - fromX, y - fromY) < 0.006) return;
    line.push([x, y]);
    changed(false);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    pad.addEventListener(name, (event) => {
      if (event.pointerId !== pressed) return;
      pressed = null;
      changed(true);
    });
  }

  let cursor = [0.5, 0.5 * height / width], lowered = false, keyed = false;
  function lower(down) {
    lowered = down;
    byId("pen").textContent = keyed ? `pen ${down ? "down" : "up"}` : "";
    wake();
  }
  for (const name of ["focus", "blur"]) {
    pad.addEventListener(name, () => {
      keyed = pad.matches(":focus-visible");
      lower(false);
    });
  }
  pad.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    keyed = true;
    if (move) {
      cursor = cursor.map((v, i) => clamp(v + 0.05 * move[i], 0, i ? height / width : 1));
      if (lowered) { strokes.at(-1).push(cursor); changed(false); }
    } else if (event.key === " " || event.key === "Enter") {
      lower(!lowered);
      if (lowered) start(cursor);
      changed(!lowered);
    } else if (event.key === "Delete" || event.key === "Backspace") clear();
    else return;
    event.preventDefault();
    wake();
  });

  // ---- drawing the page

  let colour, shown = steps, playing = false, ticked = 0, waiting = false;

  // an image in shades of grey, dark where its values are low
  function paint(canvas, image) {
    canvas.width = width;
    canvas.height = height;
    const g = canvas.getContext("2d"), pixels = g.createImageData(width, height);
    image.forEach((v, i) => {
      const shade = 255 * clamp((v - Math.min(pen.background, pen.ink)) / Math.abs(pen.ink - pen.background), 0, 1);
      pixels.data.set([shade, shade, shade, 255], 4 * i);
    });
    g.putImageData(pixels, 0, 0);
    canvas.style.imageRendering = "pixelated";
  }

  function drawPad() {
    const { g, width: w } = fitted(pad);
    if (given !== null) {
      const small = make("canvas");
      paint(small, images[given]);
      g.imageSmoothingEnabled = false;
      g.drawImage(small, 0, 0, w, w * height / width);
    }
    g.lineCap = g.lineJoin = "round";
    g.strokeStyle = g.fillStyle = colour.ink;
    g.lineWidth = w / 14;
    for (const points of strokes) {
      g.beginPath();
      g.moveTo(w * points[0][0], w * points[0][1]);
      points.forEach(([x, y]) => g.lineTo(w * x, w * y));
      g.stroke();
    }
    if (!keyed) return;
    g.strokeStyle = g.fillStyle = colour.accent;
    g.lineWidth = 2;
    g.beginPath();
    g.arc(w * cursor[0], w * cursor[1], w / 24, 0, 7);
    if (lowered) g.fill(); else g.stroke();
  }

  // a column for each step, the neurons from top to bottom; many of them share a line of pixels
  function drawRow(row, i) {
    const { g, width: w, height: h } = fitted(row.canvas), wide = w / steps, { size } = layers[i];
    const lines = Math.min(size, Math.floor(h)), high = h / lines;
    const end = Math.min(shown, run.done), seen = run.spikes[i].slice(0, end);
    const top = seen.reduce((most, values) => values.reduce((m, v) => Math.max(m, Math.abs(v)), most), 0) || 1;
    seen.forEach((values, t) => {
      const sums = new Float64Array(lines), counts = new Float64Array(lines);
      values.forEach((v, n) => { const line = Math.floor(n * lines / size); sums[line] += v; counts[line]++; });
      sums.forEach((sum, line) => {
        const share = sum / counts[line] / top;
        if (share === 0 || Number.isNaN(share)) return;
        g.globalAlpha = clamp(layers[i].spikes ? 0.25 + 0.75 * Math.abs(share) : Math.abs(share), 0, 1);
        g.fillStyle = share < 0 ? colour.down : colour.accent;
        g.fillRect(t * wide + 0.5, line * high, Math.max(wide - 1, 0.5), Math.max(high - (high > 3 ? 1 : 0), 0.5));
      });
    });
    g.globalAlpha = 1;
    g.fillStyle = colour.muted;
    if (shown < steps) g.fillRect(end * wide, 0, 1, h);
    row.out.textContent = layers[i].spikes ? counted(fired(i, end), "spike") : "values, no spikes";
  }
  const fired = (i, count) => run.spikes[i].slice(0, count).reduce((sum, values) => sum + values.reduce((n, v) => n + (v !== 0), 0), 0);

  function drawBars() {
    const count = Math.min(shown, run.done), values = readout(count);
    const low = Math.min(0, ...values), span = Math.max(0, ...values) - low || 1, top = best(values);
    bars.forEach((bar, k) => {
      const from = (Math.min(0, values[k]) - low) / span;
      bar.inner.style.left = `${100 * from}%`;
      bar.inner.style.width = `${100 * Math.abs(values[k]) / span}%`;
      bar.value.textContent = brief(values[k]);
      bar.item.classList.toggle("best", count > 0 && k === top && !isEmpty());
    });
    byId("answer").textContent = isEmpty() ? "nothing drawn" : count ? classes[top] : "…";
    byId("step").value = String(Math.max(count, 1));
    byId("at").textContent = `step ${count} of ${steps}`;
  }

  function frame(now) {
    waiting = false;
    const until = performance.now() + BUDGET;
    while (run.done < steps && performance.now() < until) step();
    if (playing && now - ticked >= TICK && shown < run.done) { shown++; ticked = now; }
    if (shown >= steps && run.done === steps) playing = false;
    drawPad();
    paint(byId("seen"), run.image);
    rows.forEach(drawRow);
    drawBars();
    byId("play").disabled = playing;
    if (run.done < steps || playing) wake(); else if (document.body.dataset.ready !== "true") finish();
  }
  // many events in one frame cause one drawing
  function wake() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(frame);
  }

  function finish() {
    rows.forEach((row, i) => row.canvas.setAttribute("aria-label", `${layers[i].name} over ${steps} steps: ${row.out.textContent}`));
    const spikes = layers.reduce((sum, layer, i) => sum + (layer.spikes ? fired(i, steps) : 0), 0);
    byId("note").textContent = isEmpty() ? "Nothing is drawn." : `The network says ${classes[best(readout(steps))]}, after ${counted(steps, "time step")} and ${counted(spikes, "spike")}.`;
    document.body.dataset.ready = "true"; // tests wait for it
  }

  // ---- start

  // What was computed, for the console.
  window.readDrawing = () => ({
    image: [...run.image], y: run.y.map((y) => [...y]), readout: readout(run.done), answer: isEmpty() ? null : classes[best(readout(run.done))],
    layers: layers.map((layer, i) => [layer.name, run.spikes[i].map((values) => [...values])]),
  });

  document.title = title;
  byId("title").textContent = title;
  for (const canvas of [pad, byId("seen")]) canvas.style.aspectRatio = `${width} / ${height}`;
  byId("seen").style.height = "auto";
  byId("readout").textContent = { mean: "mean of the readout over time", last: "readout at the last step", max: "largest readout over time" }[decode];
  byId("step").max = String(steps);
  samples.forEach((each, i) => {
    const button = make("button", { "aria-label": `example ${each.name}`, title: each.name }), canvas = make("canvas");
    canvas.style.aspectRatio = `${width} / ${height}`;
    canvas.style.height = "auto";
    paint(canvas, images[i]);
    button.append(canvas);
    button.addEventListener("click", () => reset(i));
    byId("samples").append(button);
  });
  const rows = layers.map((layer) => {
    const canvas = make("canvas", { role: "img", "aria-label": layer.name }), out = make("span", { class: "muted" });
    const about = make("span", { class: "muted" }, `${layer.kind}, ${counted(layer.size, "neuron")}${layer.shape.length > 1 ? ` (${layer.shape.join(" × ")})` : ""}`);
    byId("rows").append(make("div", { class: layer.size <= 32 ? "row few" : "row" }, make("p", {}, make("b", {}, layer.name), about, out), canvas));
    return { canvas, out };
  });
  const bars = classes.map((name) => {
    const inner = make("i"), value = make("small"), item = make("li", {}, make("span", {}, name), make("span", { class: "bar" }, inner), value);
    byId("bars").append(item);
    return { inner, value, item };
  });
  byId("clear").addEventListener("click", clear);
  byId("play").addEventListener("click", () => { playing = true; shown = 0; ticked = performance.now(); document.body.dataset.ready = "false"; wake(); });
  byId("step").addEventListener("input", () => { playing = false; shown = +byId("step").value; wake(); });
  new ResizeObserver(wake).observe(byId("rows"));
  given = 0;
  changed(false);
  page.themes(() => {
    colour = page.colours("ink", "muted", "accent", "down");
    wake();
  });
})();
