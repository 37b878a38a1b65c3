(() => {
  const { byId, clamp, make, fitted, ticks, oncePerFrame } = page;
  const run = JSON.parse(byId("run").textContent);
  const LEFT = 58, RIGHT = 20, TOP = 8, BOTTOM = 20; // margins of a plot, in CSS pixels
  const NOT_FINITE = 65535; // code of a value that is not finite, as in save_html.py
  const MAX_OPEN = 6; // layers that are open at the start

  // x goes over steps: step t fills [t - 0.5, t + 0.5]
  const view = { t0: -0.5, t1: run.steps - 0.5, sample: 0 };
  const brief = (value) => Number.isFinite(value) ? String(+value.toPrecision(5)) : "not finite";

  // ---- data: unpacked when a layer is first shown, for the current sample only

  async function unpack(layer, number, sample) {
    const text = atob(byId(`b-${number}-${sample}`).textContent);
    const packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    // the layout that pack_events and pack_trace in save_html.py write
    const T = run.steps, N = layer.neurons;
    if (layer.kind === "events") {
      const offsets = new Uint32Array(buffer, 0, T + 1);
      const count = offsets[T], wide = N > 65536;
      const at = 4 * (T + 1);
      const neuronOf = wide ? new Uint32Array(buffer, at, count) : new Uint16Array(buffer, at, count);
      const sign = layer.signed[sample] ? new Int8Array(buffer, at + (wide ? 4 : 2) * count, count) : null;
      return { offsets, neuronOf, sign };
    }
    return {
      low: new Float32Array(buffer, 0, N),
      level: new Float32Array(buffer, 4 * N, N),
      codes: new Uint16Array(buffer, 8 * N, N * T),
    };
  }

  function valueAt(data, neuron, step) {
    const code = data.codes[neuron * run.steps + step];
    return code === NOT_FINITE ? NaN : data.low[neuron] + code * data.level[neuron];
  }

  // sign of a neuron's spike at a step: 1, -1, or 0; the neurons of a step are sorted, so bisect
  function firedAt(data, neuron, step) {
    let low = data.offsets[step], high = data.offsets[step + 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (data.neuronOf[middle] < neuron) low = middle + 1; else high = middle;
    }
    const found = low < data.offsets[step + 1] && data.neuronOf[low] === neuron;
    return found ? (data.sign ? data.sign[low] : 1) : 0;
  }

  // ---- panels

  const owner = (path) => path.slice(0, Math.max(path.lastIndexOf("."), 0));
  const panels = run.layers.map((layer, number) => ({
    layer, number, open: number < MAX_OPEN, data: null, loaded: -1, map: false,
    y0: 0, y1: layer.neurons, // rows of a raster or a map
    low: 0, high: 1, free: false, // range of traces; free: zoomed by hand, not fitted to the values
    chosen: Array.from({ length: Math.min(layer.neurons, 4) }, (_, n) => n),
  }));
  const rows = (panel) => panel.layer.kind === "events" || panel.map;
  // the panel with the spikes of the layer whose states a panel shows
  const spikesOf = (panel) => panels.find((other) =>
    other !== panel && other.layer.kind === "events" && other.layer.neurons === panel.layer.neurons &&
    owner(other.layer.path) === owner(panel.layer.path));

  async function load(panel) {
    if (panel.loaded === view.sample) return;
    const sample = view.sample;
    const data = await unpack(panel.layer, panel.number, sample);
    if (sample !== view.sample) return; // another sample was selected while this one was unpacked
    panel.data = data;
    panel.loaded = sample;
    panel.free = false;
  }

  async function loadAll() {
    delete document.body.dataset.ready; // set again once everything is drawn; tests wait for it
    const sample = view.sample;
    // closed panels free the data of another sample
    for (const panel of panels) if (!panel.open && panel.loaded !== sample) { panel.data = null; panel.loaded = -1; }
    for (const panel of panels) {
      if (!panel.open) continue;
      await load(panel);
      const spikes = panel.layer.kind === "trace" ? spikesOf(panel) : null;
      if (spikes) await load(spikes);
      if (sample !== view.sample) return;
    }
    redraw();
    requestAnimationFrame(() => { document.body.dataset.ready = String(sample); });
  }

  function describe(layer) {
    const what = layer.kind === "events" ? "spikes" : "trace";
    const shape = layer.shape.length > 1 ? ` (${layer.shape.join(" × ")})` : "";
    return `${what}, ${layer.neurons.toLocaleString("en")} neuron${layer.neurons === 1 ? "" : "s"}${shape}`;
  }

  function build(panel) {
    panel.out = make("output");
    panel.canvas = make("canvas", { role: "img", "aria-label": `${panel.layer.path}: ${describe(panel.layer)} over time` });
    panel.cross = make("div", { class: "cross" });
    const head = make("div", {}, make("b", { title: panel.layer.path }, panel.layer.path));
    if (panel.layer.kind === "trace") {
      panel.field = make("input", { type: "text", "aria-label": "neurons", title: "neurons, as 0-3, 17" });
      panel.field.addEventListener("change", () => choose(panel, parse(panel.field.value, panel.layer.neurons)));
      const before = make("button", { title: "previous neurons", "aria-label": "previous neurons" }, "◂");
      const after = make("button", { title: "next neurons", "aria-label": "next neurons" }, "▸");
      before.addEventListener("click", () => shift(panel, -1));
      after.addEventListener("click", () => shift(panel, 1));
      const switchTo = make("button", { title: "lines, or a map of all neurons" }, "map");
      switchTo.addEventListener("click", () => {
        panel.map = !panel.map;
        switchTo.textContent = panel.map ? "lines" : "map";
        redraw();
      });
      head.append(make("label", { class: "muted" }, make("span", {}, "neurons "), panel.field), before, after, switchTo);
      write(panel);
    }
    head.append(panel.out);
    panel.element = make("section", { class: "panel" }, head, make("div", { class: "plot" }, panel.canvas, panel.cross));
    listen(panel);
  }

  const write = (panel) => { panel.field.value = spell(panel.chosen); };

  // [0, 1, 2, 7] to "0-2, 7"
  function spell(list) {
    const parts = [];
    for (let i = 0; i < list.length; i++) {
      let j = i;
      while (j + 1 < list.length && list[j + 1] === list[j] + 1) j++;
      parts.push(j > i ? `${list[i]}-${list[j]}` : `${list[i]}`);
      i = j;
    }
    return parts.join(", ");
  }

  // "0-2, 7" to [0, 1, 2, 7]; other text is ignored, and at most 64 neurons are selected
  function parse(text, count) {
    const found = new Set();
    for (const part of text.split(",")) {
      const match = part.trim().match(/^(\d+)(?:\s*-\s*(\d+))?$/);
      if (!match) continue;
      const first = +match[1], last = Math.min(match[2] === undefined ? first : +match[2], count - 1);
      for (let n = first; n <= last && found.size < 64; n++) found.add(n);
    }
    return [...found].sort((a, b) => a - b);
  }

  function choose(panel, neurons) {
    if (neurons.length) { panel.chosen = neurons; panel.free = false; }
    write(panel);
    redraw();
  }

  function shift(panel, by) {
    const N = panel.layer.neurons, width = panel.chosen.length;
    const first = clamp(panel.chosen[0] + by * width, 0, Math.max(N - width, 0));
    choose(panel, Array.from({ length: width }, (_, i) => first + i).filter((n) => n < N));
  }

  // ---- drawing

  let colours = {};
  function readColours() {
    colours = page.colours("ink", "muted", "line", "panel", "accent", "down", "window");
    colours.list = Object.values(page.colours("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"));
  }
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

  const redraw = oncePerFrame(() => {
    for (const panel of panels) if (panel.open && panel.loaded === view.sample) draw(panel);
    drawOverview();
    const whole = view.t1 - view.t0 >= run.steps;
    const first = Math.max(0, Math.ceil(view.t0)), last = Math.min(run.steps - 1, Math.floor(view.t1));
    byId("span").textContent = whole ? `${run.steps.toLocaleString("en")} steps`
      : `steps ${first.toLocaleString("en")} to ${Math.max(first, last).toLocaleString("en")} of ${run.steps.toLocaleString("en")}`;
  });

  const box = (canvas) => ({
    x: LEFT, y: TOP, w: Math.max(1, canvas.clientWidth - LEFT - RIGHT), h: Math.max(1, canvas.clientHeight - TOP - BOTTOM),
  });

  function draw(panel) {
    const { g, ratio } = fitted(panel.canvas);
    const b = box(panel.canvas);
    if (!rows(panel) && !panel.free) fitValues(panel);
    axes(g, b, panel);
    g.save();
    g.beginPath();
    g.rect(b.x, b.y, b.w, b.h);
    g.clip();
    if (panel.layer.kind === "events") drawEvents(g, b, panel, ratio);
    else if (panel.map) drawMap(g, b, panel, ratio);
    else drawTraces(g, b, panel);
    g.restore();
  }

  // values at the top and the bottom: rows count downwards, values upwards
  const yRange = (panel) => rows(panel) ? [panel.y0, panel.y1] : [panel.high, panel.low];

  function axes(g, b, panel) {
    const [top, bottom] = yRange(panel);
    g.font = "11px system-ui, sans-serif";
    g.lineWidth = 1;
    g.strokeStyle = colours.line;
    g.fillStyle = colours.muted;
    g.textAlign = "center";
    g.textBaseline = "top";
    for (const t of ticks(Math.max(view.t0, 0), Math.min(view.t1, run.steps - 1), b.w / 90, true)) {
      const x = b.x + (t - view.t0) / (view.t1 - view.t0) * b.w;
      g.beginPath(); g.moveTo(x, b.y); g.lineTo(x, b.y + b.h + 3); g.stroke();
      g.fillText(t.toLocaleString("en"), x, b.y + b.h + 5);
    }
    g.textAlign = "right";
    g.textBaseline = "middle";
    const shift = rows(panel) ? 0.5 : 0; // the label of a row is at its middle
    const whole = rows(panel);
    const low = Math.min(top, bottom), high = Math.max(top, bottom);
    for (const value of ticks(low, whole ? high - 0.5 : high, Math.max(b.h / 34, 2), whole)) {
      const y = b.y + (value + shift - top) / (bottom - top) * b.h;
      if (y < b.y || y > b.y + b.h) continue;
      if (!whole) { g.beginPath(); g.moveTo(b.x, y); g.lineTo(b.x + b.w, y); g.stroke(); }
      g.fillText(whole ? value.toLocaleString("en") : String(value), b.x - 6, y);
    }
    g.save();
    g.translate(10, b.y + b.h / 2);
    g.rotate(-Math.PI / 2);
    g.textAlign = "center";
    g.fillText(rows(panel) ? "neuron" : panel.layer.path.split(".").pop().slice(0, 16), 0, 0);
    g.restore();
    g.strokeRect(b.x - 0.5, b.y - 0.5, b.w + 1, b.h + 1);
  }

  const visible = () => [Math.max(0, Math.floor(view.t0)), Math.min(run.steps - 1, Math.ceil(view.t1))];

  function drawEvents(g, b, panel, ratio) {
    const { offsets, neuronOf, sign } = panel.data;
    const [first, last] = visible();
    const sx = b.w / (view.t1 - view.t0), sy = b.h / (panel.y1 - panel.y0);
    const n0 = Math.floor(panel.y0), n1 = Math.ceil(panel.y1);
    if (sx >= 3 && sy >= 2) { // there is room for a tick per spike
      const width = clamp(0.3 * sx, 1, clamp(0.4 * sy, 1.5, 4)), gap = sy >= 4 ? 0.12 * sy : 0;
      for (let t = first; t <= last; t++) {
        const x = b.x + (t - view.t0) * sx - width / 2;
        for (let i = offsets[t]; i < offsets[t + 1]; i++) {
          const n = neuronOf[i];
          if (n < n0 || n >= n1) continue;
          g.fillStyle = sign && sign[i] < 0 ? colours.down : colours.accent;
          g.fillRect(x, b.y + (n - panel.y0) * sy + gap, width, sy - 2 * gap);
        }
      }
      return;
    }
    // otherwise count spikes per pixel, so that single spikes stay visible
    const w = Math.ceil(b.w * ratio), h = Math.ceil(b.h * ratio);
    const up = new Uint32Array(w * h), down = sign ? new Uint32Array(w * h) : null;
    const px = w / (view.t1 - view.t0), py = h / (panel.y1 - panel.y0);
    let most = 1;
    for (let t = first; t <= last; t++) {
      const x = clamp(Math.floor((t - view.t0) * px), 0, w - 1);
      for (let i = offsets[t]; i < offsets[t + 1]; i++) {
        const n = neuronOf[i];
        if (n < n0 || n >= n1) continue;
        const from = clamp(Math.floor((n - panel.y0) * py), 0, h - 1);
        const to = clamp(Math.ceil((n + 0.85 - panel.y0) * py), from + 1, h);
        const into = sign && sign[i] < 0 ? down : up;
        for (let y = from; y < to; y++) most = Math.max(most, ++into[y * w + x]);
      }
    }
    const image = new ImageData(w, h), pixels = image.data;
    const [blue, red] = [rgb(colours.accent), rgb(colours.down)];
    for (let i = 0; i < w * h; i++) {
      const negative = down ? down[i] : 0, count = Math.max(up[i], negative);
      if (!count) continue;
      const c = negative > up[i] ? red : blue;
      pixels[4 * i] = c[0]; pixels[4 * i + 1] = c[1]; pixels[4 * i + 2] = c[2];
      pixels[4 * i + 3] = most === 1 ? 255 : 70 + 185 * count / most;
    }
    put(g, b, image);
  }

  const scratch = document.createElement("canvas");
  function put(g, b, image) { // through a second canvas: putImageData neither clips nor scales
    scratch.width = image.width;
    scratch.height = image.height;
    scratch.getContext("2d").putImageData(image, 0, 0);
    g.drawImage(scratch, b.x, b.y, b.w, b.h);
  }

  function drawMap(g, b, panel, ratio) {
    const { codes, low, level } = panel.data, T = run.steps, N = panel.layer.neurons;
    const w = Math.ceil(b.w * ratio), h = Math.ceil(b.h * ratio);
    let reach = 0;
    for (let n = 0; n < N; n++) reach = Math.max(reach, Math.abs(low[n]), Math.abs(low[n] + (NOT_FINITE - 1) * level[n]));
    const image = new ImageData(w, h), pixels = image.data;
    const [up, down] = [rgb(colours.accent), rgb(colours.down)];
    const px = (view.t1 - view.t0) / w, py = (panel.y1 - panel.y0) / h;
    for (let y = 0; y < h; y++) {
      const n = Math.floor(panel.y0 + (y + 0.5) * py);
      if (n < 0 || n >= N) continue;
      for (let x = 0; x < w; x++) {
        // the value furthest from zero among the steps of a pixel
        let best = 0;
        const from = Math.max(0, Math.round(view.t0 + x * px)), to = Math.min(T - 1, Math.max(from, Math.round(view.t0 + (x + 1) * px) - 1));
        for (let t = from; t <= to; t++) {
          const code = codes[n * T + t];
          if (code === NOT_FINITE) continue;
          const value = low[n] + code * level[n];
          if (Math.abs(value) > Math.abs(best)) best = value;
        }
        const c = best < 0 ? down : up, i = 4 * (y * w + x);
        pixels[i] = c[0]; pixels[i + 1] = c[1]; pixels[i + 2] = c[2];
        pixels[i + 3] = reach ? 255 * Math.abs(best) / reach : 0;
      }
    }
    put(g, b, image);
  }

  // fit the range of a panel to the values of its neurons, with room for spikes
  function fitValues(panel) {
    const { low, level, codes } = panel.data, T = run.steps;
    let least = Infinity, most = -Infinity;
    for (const n of panel.chosen) {
      let any = false;
      for (let t = 0; t < T && !any; t++) any = codes[n * T + t] !== NOT_FINITE;
      if (!any) continue;
      least = Math.min(least, low[n]);
      most = Math.max(most, low[n] + (NOT_FINITE - 1) * level[n]);
    }
    if (!(least <= most)) { least = 0; most = 1; }
    const margin = 0.06 * (most - least) || 0.5;
    const spikes = spikesOf(panel);
    panel.low = least - margin * (spikes && spikes.layer.signed[view.sample] ? 2.5 : 1);
    panel.high = most + margin * (spikes ? 2.5 : 1);
  }

  const colourOf = (place) => colours.list[place % colours.list.length];

  function drawTraces(g, b, panel) {
    const [first, last] = visible();
    const sx = b.w / (view.t1 - view.t0), T = run.steps, { codes, low, level } = panel.data;
    const Y = (value) => b.y + (panel.high - value) / (panel.high - panel.low) * b.h;
    const X = (t) => b.x + (t - view.t0) * sx;
    g.lineJoin = "round";
    panel.chosen.forEach((n, place) => {
      g.strokeStyle = colourOf(place);
      g.lineWidth = 1.4;
      g.beginPath();
      let pen = false;
      if (sx >= 0.7) {
        for (let t = Math.max(0, first - 1); t <= Math.min(T - 1, last + 1); t++) {
          const code = codes[n * T + t];
          if (code === NOT_FINITE) { pen = false; continue; }
          const y = Y(low[n] + code * level[n]);
          if (pen) g.lineTo(X(t), y); else g.moveTo(X(t), y);
          pen = true;
        }
      } else { // a line from minimum to maximum per pixel: subsampling would lose peaks
        for (let x = 0, t = first; x <= b.w; x++) {
          let least = NOT_FINITE, most = -1;
          for (; t <= last && X(t) < b.x + x + 1; t++) {
            const code = codes[n * T + t];
            if (code === NOT_FINITE) continue;
            if (code < least) least = code;
            if (code > most) most = code;
          }
          if (most < 0) { pen = false; continue; }
          const y = Y(low[n] + most * level[n]);
          if (pen) g.lineTo(b.x + x, y); else g.moveTo(b.x + x, y);
          g.lineTo(b.x + x, Y(low[n] + least * level[n]) + 0.5);
          pen = true;
        }
      }
      g.stroke();
      if (sx >= 14) { // there is room to mark the steps
        g.fillStyle = colourOf(place);
        for (let t = first; t <= last; t++) {
          const value = valueAt(panel.data, n, t);
          if (Number.isFinite(value)) { g.beginPath(); g.arc(X(t), Y(value), 2.2, 0, 7); g.fill(); }
        }
      }
    });
    const spikes = spikesOf(panel); // positive ones along the top, negative ones along the bottom
    if (!spikes || spikes.loaded !== view.sample) return;
    const height = clamp(0.1 * b.h / panel.chosen.length, 1.5, 8);
    panel.chosen.forEach((n, place) => {
      g.fillStyle = colourOf(place);
      for (let t = first; t <= last; t++) {
        const fired = firedAt(spikes.data, n, t), edge = 1 + place * (height + 1);
        if (fired) g.fillRect(X(t) - 1, fired > 0 ? b.y + edge : b.y + b.h - edge - height, 2, height);
      }
    });
  }

  // ---- overview of the whole recording

  function drawOverview() {
    const canvas = byId("overview"), { g, width, height } = fitted(canvas);
    const source = panels.find((p) => p.open && p.layer.kind === "events" && p.loaded === view.sample);
    if (source) { // spikes per step, the maximum per pixel
      const { offsets } = source.data, columns = Math.ceil(width), peak = new Uint32Array(columns);
      let most = 1;
      for (let t = 0; t < run.steps; t++) {
        const from = Math.floor(t / run.steps * width), to = Math.max(from + 1, Math.floor((t + 1) / run.steps * width));
        const count = offsets[t + 1] - offsets[t];
        for (let x = from; x < to && x < columns; x++) peak[x] = Math.max(peak[x], count);
        most = Math.max(most, count);
      }
      g.fillStyle = colours.muted;
      for (let x = 0; x < columns; x++) { const h = (height - 6) * peak[x] / most; g.fillRect(x, height - h, 1, h); }
    }
    const x = (view.t0 + 0.5) / run.steps * width, w = Math.max(3, (view.t1 - view.t0) / run.steps * width);
    g.fillStyle = colours.window;
    g.fillRect(x, 0, w, height);
    g.strokeStyle = colours.accent;
    g.lineWidth = 1.5;
    g.strokeRect(x + 0.75, 0.75, w - 1.5, height - 1.5);
  }

  // ---- zoom and pan

  // show the steps from t0 to t1: at least 4, and within the recording
  function timeTo(t0, t1) {
    const span = clamp(t1 - t0, Math.min(4, run.steps), run.steps);
    const middle = (t0 + t1) / 2;
    view.t0 = clamp(middle - span / 2, -0.5, run.steps - 0.5 - span);
    view.t1 = view.t0 + span;
    redraw();
  }
  const zoomTime = (factor, at = (view.t0 + view.t1) / 2) => timeTo(at - (at - view.t0) * factor, at + (view.t1 - at) * factor);
  const panTime = (by) => timeTo(view.t0 + by, view.t1 + by);

  function zoomRows(panel, factor, share = 0.5) {
    if (rows(panel)) {
      const N = panel.layer.neurons, at = panel.y0 + share * (panel.y1 - panel.y0);
      const span = clamp((panel.y1 - panel.y0) * factor, Math.min(4, N), N);
      panel.y0 = clamp(at - share * span, 0, N - span);
      panel.y1 = panel.y0 + span;
    } else {
      const at = panel.high - share * (panel.high - panel.low);
      panel.high = at + (panel.high - at) * factor;
      panel.low = at - (at - panel.low) * factor;
      panel.free = true;
    }
    redraw();
  }
  function panRows(panel, share) {
    if (rows(panel)) {
      const span = panel.y1 - panel.y0;
      panel.y0 = clamp(panel.y0 + share * span, 0, panel.layer.neurons - span);
      panel.y1 = panel.y0 + span;
    } else if (panel.free) {
      const by = share * (panel.high - panel.low);
      panel.low -= by; panel.high -= by;
    }
    redraw();
  }
  function fit() {
    for (const panel of panels) { panel.y0 = 0; panel.y1 = panel.layer.neurons; panel.free = false; }
    timeTo(-0.5, run.steps - 0.5);
  }

  // ---- pointer

  let under = null; // the panel under the pointer
  // position of the pointer in a plot: shares of its size, and time
  function place(panel, event) {
    const frame = panel.canvas.getBoundingClientRect(), b = box(panel.canvas);
    const share = [(event.clientX - frame.left - b.x) / b.w, (event.clientY - frame.top - b.y) / b.h];
    return { b, share, t: view.t0 + share[0] * (view.t1 - view.t0), inside: share.every((s) => s >= 0 && s <= 1) };
  }
  const rowAt = (panel, share) => clamp(Math.floor(panel.y0 + share * (panel.y1 - panel.y0)), 0, panel.layer.neurons - 1);

  function hover(panel, event) {
    const at = place(panel, event);
    if (!at.inside) return leave();
    under = panel;
    const step = clamp(Math.round(at.t), 0, run.steps - 1);
    const x = LEFT + (step - view.t0) / (view.t1 - view.t0) * at.b.w;
    for (const other of panels) {
      if (!other.open || other.loaded !== view.sample) continue;
      other.cross.style.visibility = "visible";
      other.cross.style.transform = `translateX(${x}px)`;
      other.out.replaceChildren(`step ${step.toLocaleString("en")}`, ...reading(other, step, other === panel ? at.share[1] : null));
    }
  }
  function leave() {
    under = null;
    for (const panel of panels) { panel.cross.style.visibility = "hidden"; panel.out.textContent = ""; }
  }
  function reading(panel, step, share) {
    if (rows(panel) && share !== null) {
      const n = rowAt(panel, share);
      if (panel.map) return [` · neuron ${n}: ${brief(valueAt(panel.data, n, step))}`];
      const fired = firedAt(panel.data, n, step);
      return [` · neuron ${n}: ${fired > 0 ? "spike" : fired < 0 ? "downward spike" : "silent"}`];
    }
    if (panel.layer.kind === "events") {
      const count = panel.data.offsets[step + 1] - panel.data.offsets[step];
      return [` · ${count.toLocaleString("en")} spike${count === 1 ? "" : "s"}`];
    }
    return panel.chosen.slice(0, 6).map((n, place) => {
      const part = make("span", {}, ` · ${n}: ${brief(valueAt(panel.data, n, step))}`);
      if (!panel.map) part.style.color = colourOf(place);
      return part;
    });
  }

  function listen(panel) {
    const canvas = panel.canvas, held = new Map();
    let moved = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const at = place(panel, event), size = event.deltaMode === 1 ? 16 : 1;
      const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      const delta = size * (Math.abs(event.deltaX) > Math.abs(event.deltaY) ? event.deltaX : event.deltaY);
      if (event.altKey) zoomRows(panel, 1.0015 ** delta, clamp(at.share[1], 0, 1));
      else if (sideways) panTime(delta / at.b.w * (view.t1 - view.t0));
      else zoomTime(1.0015 ** delta, at.t);
      hover(panel, event);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, [event.clientX, event.clientY]);
      if (held.size === 1) moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held.has(event.pointerId)) return hover(panel, event);
      const b = box(canvas), before = [...held.values()].map((p) => [...p]);
      held.set(event.pointerId, [event.clientX, event.clientY]);
      const after = [...held.values()];
      const middle = (points, axis) => points.reduce((sum, p) => sum + p[axis], 0) / points.length;
      const dx = middle(after, 0) - middle(before, 0), dy = middle(after, 1) - middle(before, 1);
      moved += Math.abs(dx) + Math.abs(dy);
      if (after.length === 2) { // pinch
        moved = Infinity;
        const apart = (points, axis) => Math.max(24, Math.abs(points[0][axis] - points[1][axis]));
        const frame = canvas.getBoundingClientRect();
        zoomTime(apart(before, 0) / apart(after, 0), view.t0 + (middle(after, 0) - frame.left - b.x) / b.w * (view.t1 - view.t0));
        zoomRows(panel, apart(before, 1) / apart(after, 1), clamp((middle(after, 1) - frame.top - b.y) / b.h, 0, 1));
      }
      if (moved < 4) return; // still a click
      panTime(-dx / b.w * (view.t1 - view.t0));
      panRows(panel, -dy / b.h);
      hover(panel, event);
    });
    const release = (event) => {
      const one = held.size === 1;
      held.delete(event.pointerId);
      if (event.type === "pointerup" && one && moved < 4 && rows(panel)) {
        const at = place(panel, event);
        if (at.inside) pick(panel, rowAt(panel, at.share[1]));
      }
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", leave);
    canvas.addEventListener("dblclick", fit);
  }

  // select a neuron in the panels with states of the same layer
  function pick(panel, neuron) {
    for (const other of panels) {
      if (other.layer.kind === "trace" && other.layer.neurons === panel.layer.neurons &&
          owner(other.layer.path) === owner(panel.layer.path)) choose(other, [neuron]);
    }
  }

  function arrange() {
    const open = panels.filter((panel) => panel.open);
    for (const panel of open) if (!panel.element) build(panel);
    byId("panels").replaceChildren(...(open.length ? open.map((panel) => panel.element)
      : [make("p", { class: "empty" }, "Choose a layer.")]));
    loadAll();
  }

  function chooseSample(sample) {
    view.sample = clamp(sample, 0, run.samples - 1);
    byId("sample").value = String(view.sample);
    leave();
    loadAll();
  }

  const otherTheme = page.themes(() => { readColours(); redraw(); });

  const keys = {
    ArrowLeft: () => panTime(-0.15 * (view.t1 - view.t0)),
    ArrowRight: () => panTime(0.15 * (view.t1 - view.t0)),
    ArrowUp: () => panels.filter((p) => p.open && (!under || p === under)).forEach((p) => zoomRows(p, 1 / 1.25)),
    ArrowDown: () => panels.filter((p) => p.open && (!under || p === under)).forEach((p) => zoomRows(p, 1.25)),
    "+": () => zoomTime(1 / 1.4), "=": () => zoomTime(1 / 1.4), "-": () => zoomTime(1.4),
    "0": fit, Home: () => timeTo(-0.5, view.t1 - view.t0 - 0.5), End: () => timeTo(run.steps - 0.5 - (view.t1 - view.t0), run.steps - 0.5),
    "[": () => chooseSample(view.sample - 1), "]": () => chooseSample(view.sample + 1), t: otherTheme,
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=text], select") || event.ctrlKey || event.metaKey) return;
    const act = keys[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  const overview = byId("overview");
  const scroll = (event) => {
    if (!event.buttons) return;
    const frame = overview.getBoundingClientRect(), span = view.t1 - view.t0;
    const middle = (event.clientX - frame.left) / frame.width * run.steps - 0.5;
    timeTo(middle - span / 2, middle + span / 2);
  };
  overview.addEventListener("pointerdown", (event) => { overview.setPointerCapture(event.pointerId); scroll(event); });
  overview.addEventListener("pointermove", scroll);

  // ---- start

  byId("title").textContent = run.title;
  for (const panel of panels) {
    const tick = make("input", { type: "checkbox" });
    tick.checked = panel.open;
    tick.addEventListener("change", () => { panel.open = tick.checked; arrange(); });
    byId("layers").append(make("label", {}, tick, make("span", {}, panel.layer.path, make("small", {}, describe(panel.layer)))));
  }
  for (let b = 0; b < run.samples; b++) byId("sample").append(make("option", { value: b }, `${b} of ${run.samples}`));
  byId("chooser").hidden = run.samples === 1;
  byId("sample").addEventListener("change", (event) => chooseSample(+event.target.value));
  byId("previous").addEventListener("click", () => chooseSample(view.sample - 1));
  byId("next").addEventListener("click", () => chooseSample(view.sample + 1));
  byId("closer").addEventListener("click", () => zoomTime(1 / 1.4));
  byId("wider").addEventListener("click", () => zoomTime(1.4));
  byId("fit").addEventListener("click", fit);
  new ResizeObserver(redraw).observe(byId("panels"));
  const sizes = new ResizeObserver(redraw);
  const watch = new MutationObserver(() => { for (const p of panels) if (p.element) sizes.observe(p.element); });
  watch.observe(byId("panels"), { childList: true });
  arrange();
})();
