(() => {
  const { byId, clamp, make, fitted, ticks } = page;
  // `loops` are the printed passes: forward(literals, steps, x, params, start, output, record) and
  // backward(literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart)
  const { title, neurons } = JSON.parse(byId("playground").textContent);
  const STEPS = 200, ONSET = 10; // ONSET: the first step of pulses and of the constant
  const HALFLIVES = [0.1, 1000]; // ends of the sliders of decays, in steps
  const RIGHT = 14, AXIS = 18; // margins of a plot, in CSS pixels; AXIS under the last one
  const round = (value, digits = 3) => +value.toPrecision(digits);
  const brief = (value) => Number.isFinite(value) ? String(round(value)).replace("-", "−") : "not finite";
  const words = (name) => name.replaceAll("_", " ");

  // ---- settings: everything that the address's fragment holds

  const INPUTS = ["pulses", "noise", "constant", "drawn"];
  const newSettings = () => ({
    neuron: 0,
    // values and choices that were changed, by the neuron or by the family of the twelve layers
    changed: {},
    input: { kind: "pulses", amplitude: 0.5, period: 60, width: 25, seed: 1, drawn: null },
    target: { of: "output", step: 100, all: true },
  });
  let settings = newSettings();

  const current = () => neurons[settings.neuron];
  const groupOf = (neuron) => neuron.letters ? "family" : `neuron ${neuron.label}`;
  const changes = () => settings.changed[groupOf(current())] ??= { values: {}, choices: {} };

  // What a slider and its field show: the half-life of a decay, the magnitude of a threshold.
  const shownOf = (param, value) => param.kind === "decay" ? -Math.LN2 / Math.log(value)
    : param.kind === "negative" ? -value : value;
  const valueOf = (param, shown) => param.kind === "decay" ? Math.exp(-Math.LN2 / shown)
    : param.kind === "negative" ? -shown : shown;
  const isLegal = (param, shown) => Number.isFinite(shown) && (param.kind === "weight" || shown > 0)
    && Number.isFinite(valueOf(param, shown)) && (!["decay", "fraction"].includes(param.kind) || (valueOf(param, shown) > 0 && valueOf(param, shown) < 1));
  const changedOf = (param) => changes().values[`${param.kind} ${param.name}`];
  const shown = (param) => changedOf(param) ?? round(shownOf(param, param.value));
  const value = (param) => changedOf(param) === undefined ? param.value : valueOf(param, changedOf(param));
  const choiceOf = (choice) => changes().choices[choice.name] ?? choice.index;

  function variant() {
    let place = 0; // the last choice varies fastest
    for (const choice of current().choices) place = place * choice.labels.length + choiceOf(choice);
    const [forward, backward, literals, moving] = current().variants[place];
    const numbers = (list) => list.map((n) => n === "inf" ? Infinity : n === "-inf" ? -Infinity : +n);
    return {
      forward: loops[forward], backward: loops[backward], literals: numbers(literals),
      moving: moving.map((each) => each && { loop: loops[each[0]], literals: numbers(each[1]) }),
    };
  }

  // ---- input

  // Normal numbers from a seed: mulberry32, then Box and Muller.
  function noise(seed) {
    let word = seed >>> 0;
    const uniform = () => {
      word = (word + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(word ^ (word >>> 15), word | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
    return Array.from({ length: STEPS }, () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
  }

  // In units of the neuron's input, as all settings are; `compute` multiplies by the unit.
  function inputOf({ kind, amplitude, period, width, seed, drawn }) {
    if (kind === "drawn") return drawn;
    if (kind === "noise") return noise(seed).map((n) => amplitude * n);
    return Array.from({ length: STEPS }, (_, t) =>
      t < ONSET || (kind === "pulses" && (t - ONSET) % period >= width) ? 0 : amplitude);
  }

  // ---- the neuron: forward and backward over all steps

  let run;
  function compute() {
    const neuron = current(), zeros = () => new Float64Array(STEPS);
    const { of, step, all } = settings.target;
    const x = Float64Array.from(inputOf(settings.input), (each) => neuron.unit * each);
    const params = neuron.params.map(value), start = neuron.start;
    const output = zeros(), record = neuron.states.map(zeros);
    const dOutput = zeros(), dRecord = neuron.states.map(zeros), dX = zeros();
    const dParams = params.map(() => 0), dStart = start.map(() => 0);
    const { forward, backward, literals, moving } = variant();
    forward(literals, STEPS, x, params, start, output, record);
    const chosen = of === "output" ? dOutput : dRecord[neuron.states.indexOf(of)];
    if (all) chosen.fill(1); else chosen[step] = 1;
    backward(literals, STEPS, x, params, start, record, dOutput, dRecord, dX, dParams, dStart);
    // where it fires: a parameter, or what its own loop computes at every step
    const lines = neuron.lines.map(({ param }, k) => {
      const line = zeros();
      if (param !== null) return line.fill(params[param]);
      moving[k].loop(moving[k].literals, STEPS, x, params, start, line, neuron.states.map(zeros));
      return line;
    });
    run = { x, params, output, record, dX, dParams, lines };
  }

  // ---- the Python that makes the neuron

  const literal = (number) => String(round(number, 7));
  function python() {
    const neuron = current(), keywords = [], lines = [];
    for (const param of neuron.params) {
      const changed = changedOf(param), magnitude = param.kind === "negative" ? -param.value : param.value;
      let text = literal(changed ?? magnitude);
      if (changed !== undefined && param.kind === "decay") text = `tt.functional.halflife_to_decay(${text})`;
      const isDefault = param.default !== null && changed === undefined && Math.abs(magnitude - param.default) <= 1e-6 * Math.abs(param.default);
      if (param.keyword && !isDefault) keywords.push(`${param.name}=${text}`);
      if (!param.keyword) lines.push(param.line.replace("{}", () => text));
    }
    for (const choice of neuron.choices) {
      for (const [name, text] of Object.entries(choice.keywords[choiceOf(choice)])) keywords.push(`${name}=${text}`);
      lines.push(...choice.lines[choiceOf(choice)]);
    }
    return [`neuron = ${neuron.call.name}(${[...neuron.call.fixed, ...keywords].join(", ")})`, ...lines].join("\n");
  }

  // ---- the fragment of the address

  // Drawn values are hundredths: "0*10_50*3" is ten zeros and three of 0.5.
  function pack(drawn) {
    const runs = [];
    for (const each of drawn) {
      const hundredths = Math.round(100 * each);
      if (runs.length && runs.at(-1)[0] === hundredths) runs.at(-1)[1]++; else runs.push([hundredths, 1]);
    }
    return runs.map((pair) => pair.join("*")).join("_");
  }

  function unpack(text) {
    const drawn = [];
    for (const part of text.split("_")) {
      const match = part.match(/^(-?\d{1,6})\*(\d{1,3})$/);
      if (!match) throw new Error("drawn");
      for (let i = 0; i < +match[2]; i++) drawn.push(+match[1] / 100);
    }
    if (drawn.length !== STEPS) throw new Error("drawn");
    return drawn;
  }

  function fragment() {
    const { input, target } = settings, start = newSettings(), pairs = [];
    if (settings.neuron) pairs.push(["neuron", current().label]);
    for (const param of current().params) {
      if (changedOf(param) !== undefined) pairs.push([`p.${param.name}`, changedOf(param)]);
    }
    for (const choice of current().choices) {
      if (choiceOf(choice) !== choice.index) pairs.push([`o.${choice.name}`, choice.labels[choiceOf(choice)]]);
    }
    for (const name of ["kind", "amplitude", "period", "width", "seed"]) {
      if (input[name] !== start.input[name]) pairs.push([name, input[name]]);
    }
    if (input.kind === "drawn") pairs.push(["drawn", pack(input.drawn)]);
    if (target.of !== start.target.of) pairs.push(["of", target.of]);
    if (!target.all) pairs.push(["step", target.step]);
    return String(new URLSearchParams(pairs));
  }

  const LIMITS = { amplitude: [-1e6, 1e6], period: [2, STEPS], width: [1, STEPS], seed: [0, 2 ** 32 - 1], step: [0, STEPS - 1] };

  // Settings from a fragment; an error for whatever the page would not have written.
  function parse(text) {
    const read = newSettings(), pairs = [...new URLSearchParams(text)], drawn = new Map(pairs).get("drawn");
    const place = new Map(pairs).get("neuron");
    if (new Map(pairs).size !== pairs.length) throw new Error("twice");
    read.neuron = place === undefined ? 0 : neurons.findIndex((each) => each.label === place);
    const neuron = neurons[read.neuron], values = {}, choices = {};
    if (!neuron) throw new Error("neuron");
    const number = (name, given) => {
      const found = Number(given), [low, high] = LIMITS[name];
      if (given.trim() === "" || !(found >= low && found <= high)) throw new Error(name);
      if (name !== "amplitude" && !Number.isInteger(found)) throw new Error(name);
      return found;
    };
    for (const [key, given] of pairs) {
      if (key.startsWith("p.")) {
        const param = neuron.params.find((each) => each.name === key.slice(2));
        if (!param || given.trim() === "" || !isLegal(param, Number(given))) throw new Error(key);
        values[`${param.kind} ${param.name}`] = Number(given);
      } else if (key.startsWith("o.")) {
        const choice = neuron.choices.find((each) => each.name === key.slice(2));
        if (!choice || !choice.labels.includes(given)) throw new Error(key);
        choices[choice.name] = choice.labels.indexOf(given);
      } else if (key === "kind" && INPUTS.includes(given) && (given !== "drawn" || drawn)) read.input.kind = given;
      else if (key === "drawn") read.input.drawn = unpack(given);
      else if (key === "of" && ["output", ...neuron.shown].includes(given)) read.target.of = given;
      else if (key === "step") Object.assign(read.target, { all: false, step: number(key, given) });
      else if (key in LIMITS) read.input[key] = number(key, given);
      else if (key !== "neuron") throw new Error(key);
    }
    read.changed[groupOf(neuron)] = { values, choices };
    return read;
  }

  function load() {
    const text = location.hash.slice(1);
    if (!text) return "";
    try {
      settings = parse(text);
      return "";
    } catch {
      settings = newSettings();
      return "The settings in the address are not those of this page and were ignored.";
    }
  }

  // ---- controls

  // A labelled field and slider. `place` and `at` convert between its value and 0 ... 1.
  function knob(name, label, { unit = "", at, place, legal, get, set, note, slope = false, integer = false }) {
    const field = make("input", { type: "number", step: integer ? "1" : "any", "aria-label": `${label}${unit && `, ${unit}`}` });
    const slider = make("input", { type: "range", min: 0, max: 1000, step: 1, "aria-label": `${label}, slider` });
    const small = make("small"), gradient = make("small", { class: "slope" });
    const element = make("div", { class: slope ? "knob sloped" : "knob", "data-name": name },
      make("span", {}, label, small), make("span", { class: "value" }, field, slope ? "" : unit), slider, ...(slope ? [gradient] : []));
    const show = () => {
      if (document.activeElement !== field) field.value = get();
      field.toggleAttribute("aria-invalid", false);
      slider.value = Math.round(1000 * clamp(place(get()), 0, 1));
      slider.setAttribute("aria-valuetext", `${get()} ${unit}`.trim());
      small.textContent = note ? note() : "";
    };
    slider.addEventListener("input", () => { set(at(slider.value / 1000)); update(); });
    field.addEventListener("input", () => {
      const given = field.value === "" ? NaN : Number(field.value);
      const fits = legal(given);
      if (fits) { set(given); update(); }
      field.setAttribute("aria-invalid", String(!fits));
    });
    field.addEventListener("blur", show);
    return { element, show, gradient };
  }

  const logarithmic = (low, high) => ({
    at: (place) => round(low * (high / low) ** place), place: (shown) => Math.log(shown / low) / Math.log(high / low),
  });
  const linear = (low, high, unit) => ({
    at: (place) => round(Math.round((low + (high - low) * place) / unit) * unit, 6), place: (shown) => (shown - low) / (high - low),
  });

  let knobs = [], inputKnobs = [];
  function buildParams() {
    knobs = current().params.map((param) => {
      const original = Math.abs(param.value) || 1, scale = Math.max(3, 2 * original);
      const ends = [shownOf(param, param.value), ...HALFLIVES];
      const range = param.kind === "decay" ? logarithmic(Math.min(...ends), Math.max(...ends))
        : param.kind === "fraction" ? linear(Math.min(0.001, original), Math.max(0.999, original), 0.001)
        : param.kind === "weight" ? linear(-scale, scale, scale / 300) : logarithmic(original / 20, original * 20);
      return knob(param.name, words(param.name), {
        ...range, unit: param.kind === "decay" ? "steps" : "", slope: true,
        legal: (shown) => isLegal(param, shown), get: () => shown(param),
        set: (given) => { changes().values[`${param.kind} ${param.name}`] = given; },
        note: () => param.kind === "decay" ? String(round(value(param), 4))
          : param.kind === "negative" ? `at ${brief(value(param))}` : "",
      });
    });
    byId("params").replaceChildren(...knobs.map((each) => each.element));
  }

  let controls = []; // functions that show the settings in the controls
  function select(label, options, get, set) {
    const element = make("select", { "aria-label": label }, ...options.map((each) => make("option", { value: each }, words(each))));
    element.addEventListener("change", () => { set(element.selectedIndex); update(); });
    controls.push(() => { element.selectedIndex = get(); });
    return element;
  }

  function check(label, get, set) {
    const box = make("input", { type: "checkbox" });
    box.addEventListener("change", () => { set(box.checked); update(); });
    controls.push(() => { box.checked = get(); });
    return make("label", {}, box, label);
  }

  function buildChoices() {
    const { choices, options } = current();
    byId("choices").replaceChildren(...choices.map((choice) => {
      const isFlag = choice.labels.join() === "False,True";
      const set = (place) => { changes().choices[choice.name] = +place; };
      return isFlag ? make("div", { class: "line" }, check(words(choice.name), () => choiceOf(choice) === 1, set))
        : make("div", { class: "line" }, make("label", {}, words(choice.name)), select(words(choice.name), choice.labels, () => choiceOf(choice), set));
    }));
    byId("fixed").textContent = options.join(", ");
    byId("options").hidden = choices.length + options.length === 0;
  }

  function buildInput() {
    const input = () => settings.input;
    const integers = (name) => ({
      get: () => input()[name], set: (given) => { input()[name] = Math.round(given); }, integer: true,
      legal: (given) => Number.isInteger(given) && given >= LIMITS[name][0] && given <= LIMITS[name][1],
    });
    const setKind = (place) => {
      const kind = INPUTS[place];
      if (kind === "drawn") input().drawn = [...inputOf(input())].map((v) => Math.round(100 * v) / 100);
      input().kind = kind;
    };
    const kinds = select("kind of input", INPUTS, () => INPUTS.indexOf(input().kind), setKind);
    inputKnobs = [
      ["pulses noise constant", knob("amplitude", "amplitude", {
        ...linear(-3, 3, 0.02), get: () => input().amplitude, set: (given) => { input().amplitude = given; },
        legal: (given) => Math.abs(given) <= LIMITS.amplitude[1],
        note: () => current().unit === 1 ? "" : `times ${current().unit}`,
      })],
      ["pulses", knob("period", "period", { ...linear(2, 120, 1), unit: "steps", ...integers("period") })],
      ["pulses", knob("width", "width", { ...linear(1, 60, 1), unit: "steps", ...integers("width") })],
      ["noise", knob("seed", "seed", { ...linear(0, 99, 1), ...integers("seed") })],
    ];
    const clear = make("button", {}, "clear");
    clear.addEventListener("click", () => { input().drawn = new Array(STEPS).fill(0); update(); });
    const help = make("p", { class: "muted help" }, "Draw in the plot, or focus it and use the arrow keys.");
    byId("input").replaceChildren(make("div", { class: "line" }, kinds), ...inputKnobs.map(([, each]) => each.element), help, clear);
    controls.push(() => {
      for (const [kinds, each] of inputKnobs) { each.element.hidden = !kinds.split(" ").includes(input().kind); each.show(); }
      clear.hidden = input().kind !== "drawn";
    });
  }

  function buildTarget() {
    const target = () => settings.target, of = () => ["output", ...current().shown];
    const which = select("output or state", of(), () => of().indexOf(target().of), (place) => { target().of = of()[place]; });
    const all = check("sum over all steps", () => target().all, (on) => { target().all = on; });
    const step = knob("step", "step", {
      ...linear(0, STEPS - 1, 1), get: () => target().step, integer: true, legal: (given) => Number.isInteger(given) && given >= 0 && given < STEPS,
      set: (given) => { Object.assign(target(), { step: given, all: false }); },
    });
    const help = make("p", { class: "muted help" }, "Or click on the output or a state.");
    byId("target").replaceChildren(make("div", { class: "line" }, which), make("div", { class: "line" }, all), step.element, help);
    controls.push(step.show);
  }

  const LETTERS = { S: "synapse", R: "recurrence", B: "both signs", readout: "readout" };
  const spell = (letters) => Object.keys(LETTERS).filter((each) => letters[each]).join();
  const family = neurons.filter((each) => each.letters);
  const withLetters = (letters) => neurons.findIndex((each) => each.letters && spell(each.letters) === spell(letters));

  function buildLetters() {
    const boxes = Object.entries(LETTERS).map(([letter, word]) => {
      const box = make("input", { type: "checkbox", "data-letter": letter });
      box.addEventListener("change", () => {
        const letters = { ...current().letters, [letter]: box.checked };
        // a readout does not spike, so it has no spikes of both signs
        if (letter === "readout" && box.checked && withLetters(letters) < 0) letters.B = false;
        choose(withLetters(letters));
      });
      return make("label", {}, box, ...(letter.length === 1 ? [make("b", {}, letter), word] : [word]));
    });
    byId("letters").replaceChildren(...boxes);
  }

  function showLetters() {
    byId("letters").hidden = family.length < 2 || !current().letters;
    if (!current().letters) return;
    for (const box of byId("letters").querySelectorAll("input")) {
      const letter = box.dataset.letter, other = { ...current().letters, [letter]: !current().letters[letter] };
      box.checked = current().letters[letter];
      const without = letter === "readout" ? { ...other, B: false } : other;
      box.disabled = withLetters(other) < 0 && withLetters(without) < 0;
    }
  }

  function choose(place) {
    settings.neuron = place;
    build();
    update();
  }

  // ---- plots

  let rows = [];
  let colour = {};

  const STATE_COLOURS = { mem: "c0", syn: "c5", rec: "c3" };
  const SPARE_COLOURS = ["c3", "c5", "c6", "c7"];
  function buildRows() {
    const neuron = current();
    let spare = 0;
    const paint = (name, first) => STATE_COLOURS[name] ?? (first ? "c0" : SPARE_COLOURS[spare++ % SPARE_COLOURS.length]);
    // the membrane, which is the first state, stands beside the spikes
    const states = [...neuron.shown].reverse();
    rows = [
      { kind: "input", name: "input", grow: 1.1, colour: "c4", values: () => run.x },
      ...states.map((name) => ({
        kind: "state", name, of: name, grow: name === neuron.states[0] ? 1.7 : 0.9, colour: paint(name, name === neuron.states[0]),
        values: () => run.record[neuron.states.indexOf(name)], membrane: name === neuron.states[0],
      })),
      { kind: "output", name: neuron.output, of: "output", grow: neuron.spiking ? 0.7 : 1.7, colour: neuron.spiking ? "ink" : "c0", values: () => run.output },
      { kind: "gradient", name: "input gradient", grow: 1.2, colour: "c0", values: () => run.dX },
    ];
    for (const row of rows) {
      row.canvas = make("canvas", row.kind === "input" ? { class: "hand", tabindex: 0, role: "slider", "aria-label": "input at a step: left and right choose the step, up and down change the value", "aria-valuemin": -100, "aria-valuemax": 100 } : { role: "img" });
      row.label = make("b", {}, row.name);
      row.out = make("output", {}, "");
      row.element = make("div", { class: "row", "data-row": row.of ?? row.kind }, row.canvas, make("p", {}, row.label, row.out));
      row.element.style.flexGrow = row.grow;
      listen(row);
    }
    byId("plots").replaceChildren(...rows.map((row) => row.element));
  }

  const narrow = matchMedia("(max-width: 620px)");
  function box(row) {
    const x = narrow.matches ? 42 : 52, y = narrow.matches ? 17 : 21; // y: under the name of the row
    return {
      x, y, w: Math.max(1, row.canvas.clientWidth - x - RIGHT),
      h: Math.max(1, row.canvas.clientHeight - y - (row.kind === "gradient" ? AXIS : 5)),
    };
  }

  const linesOf = (row) => row.kind === "state" ? current().lines.flatMap(({ state }, k) => state === row.of ? [run.lines[k]] : []) : [];

  // lowest and highest value of a row, rounded outwards so that the axis seldom moves
  function extent(row) {
    let low = 0, high = 0;
    const include = (value) => { if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); } };
    row.values().forEach(include);
    linesOf(row).forEach((line) => line.forEach(include));
    if (row.kind === "input") { include(current().unit); if (low < 0 || settings.input.kind === "drawn") include(-current().unit); }
    if (row.kind === "output" && current().spiking) include(1);
    if (low === high) { low = -1; high = 1; }
    const [first, second] = ticks(low, high, 5), step = second - first, room = 0.06 * (high - low);
    low = low < 0 ? Math.floor((low - room) / step * 2) * step / 2 : 0;
    high = high > 0 ? Math.ceil((high + room) / step * 2) * step / 2 : 0;
    return row.frozen ?? [low, high]; // while a hand draws, the axis stays
  }

  let hover = null;
  function draw(row) {
    const { g } = fitted(row.canvas), b = box(row), values = row.values();
    const [low, high] = row.extent = extent(row);
    const X = (t) => b.x + (t + 0.5) / STEPS * b.w;
    const Y = (value) => b.y + (high - value) / (high - low) * b.h;
    g.font = "11px system-ui, sans-serif";
    g.lineWidth = 1;
    // axes: values on the left, steps under the last plot
    g.fillStyle = colour.muted;
    g.strokeStyle = colour.line;
    g.textAlign = "right";
    g.textBaseline = "middle";
    for (const tick of ticks(low, high, clamp(Math.floor(b.h / 26), 2, 4))) {
      const y = Math.round(Y(tick)) + 0.5;
      g.beginPath(); g.moveTo(b.x, y); g.lineTo(b.x + b.w, y); g.stroke();
      g.fillText(brief(tick), b.x - 6, clamp(y, b.y + 4, b.y + b.h - 2));
    }
    if (row.kind === "gradient") {
      g.textAlign = "center";
      g.textBaseline = "alphabetic";
      for (const tick of ticks(0, STEPS, b.w / 80)) if (tick < STEPS) g.fillText(String(tick), X(tick), b.y + b.h + 13);
      g.textAlign = "right";
      g.fillText("step", b.x + b.w, b.y + b.h + 13);
    }
    // the step that is differentiated, and the one under the pointer
    const mark = (t, style, dash) => {
      g.save(); g.strokeStyle = style; g.setLineDash(dash); g.lineWidth = 1;
      g.beginPath(); g.moveTo(X(t), b.y - 3); g.lineTo(X(t), b.y + b.h); g.stroke(); g.restore();
    };
    if (!settings.target.all) mark(settings.target.step, row.of === settings.target.of ? colour.ink : colour.muted, row.of === settings.target.of ? [] : [3, 3]);
    if (hover !== null) mark(hover, colour.muted, []);
    g.save(); g.strokeStyle = colour.down; g.setLineDash([6, 4]);
    for (const line of linesOf(row)) drawLine(g, line, X, Y);
    g.restore();
    g.fillStyle = g.strokeStyle = colour[row.colour];
    g.lineWidth = 1.6;
    g.lineJoin = "round";
    if (row.kind === "input") drawStairs(g, b, values, Y);
    else if (row.kind === "gradient" || (row.kind === "output" && current().spiking)) drawBars(g, b, values, Y, row.kind === "output");
    else drawLine(g, values, X, Y);
    if (row.membrane && current().spiking) drawSpikes(g, b, X);
    if (row.kind === "input" && document.activeElement === row.canvas) {
      g.fillStyle = colour.ink;
      g.beginPath(); g.arc(X(cursor), Y(values[cursor]), 4, 0, 7); g.fill();
    }
    read(row);
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
    const edge = (t) => b.x + t / STEPS * b.w;
    const trace = () => values.forEach((value, t) => { g.lineTo(edge(t), Y(value)); g.lineTo(edge(t + 1), Y(value)); });
    g.beginPath(); g.moveTo(edge(0), Y(0)); trace(); g.lineTo(edge(STEPS), Y(0));
    g.globalAlpha = 0.18; g.fill(); g.globalAlpha = 1;
    g.beginPath(); trace(); g.stroke();
  }

  function drawBars(g, b, values, Y, spikes) {
    const wide = b.w / STEPS, width = spikes ? Math.max(1.5, 0.6 * wide) : Math.max(1, 0.8 * wide);
    values.forEach((value, t) => {
      if (!Number.isFinite(value) || value === 0) return;
      g.fillStyle = value < 0 ? colour.down : colour[spikes ? "accent" : "c0"];
      g.fillRect(b.x + (t + 0.5) * wide - width / 2, Math.min(Y(0), Y(value)), width, Math.abs(Y(value) - Y(0)));
    });
    g.fillStyle = colour.muted;
    g.fillRect(b.x, Math.round(Y(0)), b.w, 1);
  }

  // small triangles where the neuron fires: upward spikes above the membrane, downward ones below
  function drawSpikes(g, b, X) {
    run.output.forEach((value, t) => {
      if (value === 0 || !Number.isFinite(value)) return;
      const up = value > 0, y = up ? b.y - 3 : b.y + b.h + 4, way = up ? 1 : -1;
      g.fillStyle = up ? colour.accent : colour.down;
      g.beginPath(); g.moveTo(X(t), y + 6 * way); g.lineTo(X(t) - 3, y); g.lineTo(X(t) + 3, y); g.fill();
    });
  }

  // the values beside the name of a row: at the pointer, else at the chosen step, else a summary
  function read(row) {
    const at = hover ?? (settings.target.all ? null : settings.target.step), values = row.values();
    if (at !== null) { row.out.textContent = `step ${at}: ${brief(values[at])}`; return; }
    const fired = values.reduce((count, value) => count + (value !== 0), 0);
    row.out.textContent = row.kind === "output" && current().spiking ? `${fired} spike${fired === 1 ? "" : "s"}`
      : row.kind === "gradient" ? `of sum of ${words(settings.target.of)}; peak ${largest()}`
        : row.kind === "input" ? "draw here" : [row.membrane && current().spiking ? "after the reset" : "", linesOf(row).length ? "dashed: where it fires" : ""].filter(Boolean).join("; ");
    if (row.kind !== "gradient" && row.kind !== "output" && values.some((value) => !Number.isFinite(value))) row.out.textContent = "not finite";
  }

  function largest() {
    let step = 0;
    run.dX.forEach((value, t) => { if (Math.abs(value) > Math.abs(run.dX[step])) step = t; });
    return run.dX[step] === 0 ? "0 at every step" : `${brief(run.dX[step])} at step ${step}`;
  }

  // ---- pointer and keys on the plots

  let cursor = 0;
  const stepAt = (row, event) => {
    const b = box(row);
    return clamp(Math.floor((event.clientX - row.canvas.getBoundingClientRect().left - b.x) / b.w * STEPS), 0, STEPS - 1);
  };

  function drawn() {
    const input = settings.input;
    if (input.kind !== "drawn") {
      input.drawn = [...inputOf(input)].map((each) => Math.round(100 * each) / 100);
      input.kind = "drawn";
    }
    return input.drawn;
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
      } else if (row.of) {
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
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -STEPS, End: STEPS }[event.key];
      const change = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (event.ctrlKey || event.altKey || event.metaKey || (move === undefined && change === undefined)) return;
      event.preventDefault();
      if (move !== undefined) cursor = clamp(cursor + move, 0, STEPS - 1);
      else {
        const hand = drawn();
        hand[cursor] = Math.round(100 * (hand[cursor] + change * (event.shiftKey ? 0.01 : 0.1))) / 100;
      }
      update();
    });
  }

  // ---- updating

  let pending = false, waiting = 0, spoken = "";
  // many events in one frame cause a single computation
  function update() {
    compute();
    redraw();
    clearTimeout(waiting);
    waiting = setTimeout(() => { store(); speak(); }, 400);
  }

  function redraw() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      rows.forEach(draw);
      showControls();
    });
  }

  function showControls() {
    byId("neuron").selectedIndex = settings.neuron;
    showLetters();
    for (const show of controls) show();
    knobs.forEach((each, i) => {
      each.show();
      each.gradient.textContent = brief(run.dParams[i]);
    });
    const { of, step, all } = settings.target;
    byId("slopes-of").textContent = `∂ ${all ? `sum of ${of}` : `${of}, step ${step}`}`;
    // a line may break behind these signs, and is copied whole
    byId("python").replaceChildren(...python().split(/(?<=[=.(,])(?=\S)/).flatMap((part) => [part, make("wbr")]));
    const field = rows[0].canvas;
    field.setAttribute("aria-valuenow", String(run.x[cursor]));
    field.setAttribute("aria-valuetext", `step ${cursor}: ${brief(run.x[cursor])}`);
    for (const row of rows.slice(1)) row.canvas.setAttribute("aria-label", `${row.name} over ${STEPS} steps, ${row.out.textContent}`);
    document.body.dataset.ready = "true"; // tests wait for it
  }

  function store() {
    const text = fragment();
    try { history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search); } catch { /* an address that cannot change */ }
  }

  function speak() {
    const { of, step, all } = settings.target;
    const fired = run.output.reduce((count, value) => count + (value !== 0), 0);
    const what = current().spiking ? `${fired} spike${fired === 1 ? "" : "s"}. ` : "";
    const text = `${current().label}: ${what}Gradient of ${all ? `the sum of ${of}` : `${of} at step ${step}`}: peak ${largest()}.`;
    if (text !== spoken) say(spoken = text);
  }
  const say = (text) => { byId("note").textContent = text; };

  function build() {
    const neuron = current();
    if (settings.target.of !== "output" && !neuron.shown.includes(settings.target.of)) settings.target.of = "output";
    controls = [];
    byId("summary").textContent = neuron.about.summary;
    byId("about").hidden = neuron.about.summary === "";
    byId("units").textContent = neuron.params.some((param) => param.kind === "decay") ? "half-lives in steps" : "";
    byId("equations").textContent = neuron.about.equations;
    buildParams();
    buildChoices();
    buildInput();
    buildTarget();
    buildRows();
  }

  async function copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // without access to the clipboard: the old way, through a selection
      const area = make("textarea", { "aria-hidden": "true" });
      area.value = text;
      document.body.append(area);
      area.select();
      const copied = document.execCommand("copy");
      area.remove();
      if (!copied) { say("The browser does not let this page copy; select the text and copy it."); return; }
    }
    say(done);
  }

  // ---- start

  // The numbers that are drawn, for the console.
  window.readPlayground = () => {
    const neuron = current(), named = (names, values) => Object.fromEntries(names.map((name, i) => [name, values[i]]));
    const names = neuron.params.map((param) => param.name);
    return {
      neuron: neuron.label, python: python(), choices: named(neuron.choices.map((each) => each.name), neuron.choices.map((each) => each.labels[choiceOf(each)])),
      target: { ...settings.target }, input: settings.input.kind, params: named(names, run.params), x: [...run.x], output: [...run.output],
      states: named(neuron.states, run.record.map((each) => [...each])), lines: neuron.lines.map(({ state }, k) => [state, [...run.lines[k]]]), gradients: { x: [...run.dX], ...named(names, run.dParams) },
    };
  };

  document.title = title;
  byId("title").textContent = title;
  byId("neuron").append(...neurons.map((each) => make("option", {}, each.label)));
  byId("chooser").hidden = neurons.length < 2;
  byId("neuron").addEventListener("change", () => choose(byId("neuron").selectedIndex));
  byId("copy").addEventListener("click", () => copy(python(), "Python copied."));
  byId("share").addEventListener("click", () => {
    clearTimeout(waiting);
    store();
    copy(location.href.split("#")[0] + (fragment() && `#${fragment()}`), "Link copied.");
  });
  byId("reset").addEventListener("click", () => {
    settings = newSettings();
    build();
    update();
  });

  addEventListener("hashchange", () => { const problem = load(); build(); update(); if (problem) { clearTimeout(waiting); say(problem); } });
  new ResizeObserver(() => { if (run) redraw(); }).observe(byId("plots"));

  page.themes(() => {
    colour = page.colours("ink", "muted", "line", "panel", "accent", "down", "c0", "c3", "c4", "c5", "c6", "c7");
    if (run) redraw();
  });
  buildLetters();
  const problem = load();
  build();
  compute();
  redraw();
  if (problem) say(problem); else speak();
})();
