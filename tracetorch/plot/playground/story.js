// What leads through the page: neurons in groups, presets, things to try, and A beside B.
function buildChooser() {
  const chooser = byId("neuron"), groups = [...new Set(neurons.map((each) => each.group))];
  const option = (each) => make("option", { value: neurons.indexOf(each) }, each.label);
  chooser.append(...groups.length < 2 ? neurons.map(option)
    : groups.map((group) => make("optgroup", { label: group }, ...neurons.filter((each) => each.group === group).map(option))));
  byId("chooser").hidden = neurons.length < 2;
  chooser.addEventListener("change", () => choose(+chooser.value));
}

// ---- presets: values and inputs that were published, or that show what the neuron is for

function take({ values, input: given }) {
  const change = changes();
  change.values = Object.fromEntries(Object.entries(values).map(([name, shown]) => [`${current().params.find((param) => param.name === name).kind} ${name}`, shown]));
  change.input = { ...current().input, ...given };
}

const isTaken = (preset) => current().params.every((param) => shown(param) === (preset.values[param.name] ?? round(shownOf(param, param.value))))
  && ["kind", "amplitude"].every((name) => input()[name] === { ...current().input, ...preset.input }[name]);

function buildPresets() {
  const buttons = current().presets.map((preset) => {
    const button = make("button", { "aria-pressed": "false", title: preset.note }, preset.name);
    button.addEventListener("click", () => {
      take(preset);
      caption(preset.note);
      ghost = run = null;
      update();
      playhead.play();
    });
    controls.push(() => button.setAttribute("aria-pressed", String(isTaken(preset))));
    return button;
  });
  byId("presets").replaceChildren(...buttons);
  byId("presets").hidden = buttons.length === 0;
}

// ---- what to try: a link to settings, and what they show

// take settings, and play them
function follow(fragment, text) {
  settings = parse(fragment);
  changed();
  caption(text);
  playhead.play();
  // On a narrow page the plots may be far above, and what stays of them is not all. Not before they are drawn.
  const behavior = calm.matches ? "auto" : "smooth";
  requestAnimationFrame(() => {
    if (narrow.matches) document.querySelector("main").scrollIntoView({ behavior });
    else byId("plots").scrollIntoView({ block: "nearest", behavior });
  });
}

// ---- A and B: one run stays behind all others

function buildCompare() {
  byId("keep").addEventListener("click", () => { kept = { run, settings: structuredClone(settings) }; redraw(); say("Kept as A: what you change now is B."); });
  byId("swap").addEventListener("click", () => {
    const other = { run, settings: structuredClone(settings) };
    settings = kept.settings;
    kept = other;
    build();
    update();
  });
  byId("drop").addEventListener("click", () => { kept = null; byId("keep").focus(); redraw(); });
}

function showCompare() {
  byId("swap").disabled = byId("drop").disabled = kept === null;
  byId("keep").textContent = kept ? "keep anew" : "keep as A";
  byId("versus").replaceChildren(...kept ? rowsOf(kept.run, run) : []);
  byId("versus").hidden = kept === null;
}

function rowsOf(a, b) {
  const cells = (kind, ...texts) => make("tr", {}, ...texts.map((text, k) => make(k ? kind : "th", {}, text)));
  const changed = a.neuron === b.neuron ? b.neuron.params.map((param, k) => [words(param.name), param, a.params[k], b.params[k]]).filter(([, , p, q]) => p !== q) : [];
  const count = (each) => each.neuron.spiking ? String(spikesOf(each.output)) : "none";
  return [
    cells("th", "", "A", "B"),
    ...(a.neuron === b.neuron ? [] : [cells("td", "neuron", a.neuron.label, b.neuron.label)]),
    cells("td", "spikes", count(a), count(b)),
    ...changed.map(([name, param, p, q]) => cells("td", name, brief(shownOf(param, p)), brief(shownOf(param, q)))),
  ];
}
