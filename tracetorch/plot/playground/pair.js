// A second neuron, and the synapses between the two.
let synapses = [];

function buildPair() {
  const on = check("a second neuron", () => settings.pair !== null, (wanted) => {
    if (wanted) {
      settings.sides[1] = structuredClone(settings.sides[0]);
      settings.pair = Object.fromEntries(PAIR.map((name) => [name, 0]));
    } else unpair();
    changed();
  });
  byId("second-on").replaceChildren(on);
  byId("pairs").replaceChildren(...pairs.map(({ name, text, fragment }) => {
    const button = make("button", { title: text }, name);
    button.addEventListener("click", () => follow(fragment, text));
    return button;
  }));
  byId("pairs").hidden = pairs.length === 0;
  byId("sides").replaceChildren(...[0, 1].map((place) => {
    const button = make("button", {}, `neuron ${place + 1}`);
    button.addEventListener("click", () => {
      settings.shown = place;
      settings.target.of = "output";
      afresh(); // the caption is of both neurons, and stays
    });
    return button;
  }));
}

// the neuron that is shown stays
function unpair() {
  settings.sides[0] = side();
  Object.assign(settings, { pair: null, shown: 0 });
}

// sliders of the weights, in the unit of the neuron behind, and of how late the second input is
function buildSynapses() {
  const weight = (name, label, to) => {
    const { unit } = onSide(to, current), most = 3 * unit;
    return knob(name, label, {
      ...linear(-most, most, 0.02 * unit), slope: true, get: () => settings.pair[name], set: (given) => { settings.pair[name] = given; },
      legal: (given) => Math.abs(given) <= 1e6, note: () => settings.pair[name] < 0 ? "inhibits" : settings.pair[name] > 0 ? "excites" : "",
    });
  };
  synapses = !settings.pair ? [] : [
    weight("w12", "weight 1 → 2", 1), weight("w21", "weight 2 → 1", 0),
    knob("lag", "input 2 later by", {
      ...linear(-LATEST, LATEST, 1), unit: "steps", integer: true, get: () => settings.pair.lag, set: (given) => { settings.pair.lag = given; },
      legal: (given) => Number.isInteger(given) && Math.abs(given) <= LATEST,
    }),
  ];
  byId("synapses").replaceChildren(...synapses.map((each) => each.element));
}

function showPair() {
  const { pair, shown } = settings, box = byId("second-on").querySelector("input");
  box.checked = pair !== null;
  box.disabled = !canPair(current());
  byId("sides").hidden = byId("synapses").hidden = byId("between").hidden = pair === null;
  byId("sides").querySelectorAll("button").forEach((button, place) => button.setAttribute("aria-pressed", String(place === shown)));
  synapses.forEach((each, k) => {
    each.show();
    if (k < 2) each.gradient.textContent = brief(run.dWeights[1 - k]);
  });
  if (pair) synapses[2].element.hidden = !onSide(1, () => isTimed(input()));
}
