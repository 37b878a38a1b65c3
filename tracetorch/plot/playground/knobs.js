// The controls of a neuron: a slider for each parameter, choices, the input, and the target of the gradient.
let knobs = [], inputKnobs = [];
function buildParams() {
  knobs = current().params.map((param) => {
    const original = Math.abs(param.value) || 1, scale = Math.max(3, 2 * original);
    const ends = [shownOf(param, param.value), ...HALFLIVES];
    const range = param.kind === "decay" ? logarithmic(Math.min(...ends), Math.max(...ends))
      : param.kind === "fraction" ? linear(Math.min(0.001, original), Math.max(0.999, original), 0.001)
      : param.kind === "weight" ? linear(-scale, scale, scale / 300) : logarithmic(original / 20, original * 20);
    return knob(param.name, param.kind === "decay" ? `half-life of ${words(param.name)}` : words(param.name), {
      ...range, unit: param.kind === "decay" ? "steps" : "", slope: true,
      legal: (shown) => isLegal(param, shown), get: () => shown(param),
      set: (given) => { changes().values[`${param.kind} ${param.name}`] = given; },
      note: () => param.kind === "decay" ? `decay ${round(value(param), 4)}`
        : param.kind === "negative" ? `at ${brief(value(param))}` : "",
    });
  });
  byId("params").replaceChildren(...knobs.map((each) => each.element));
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
  const limits = limitsOf(stepCount()), setKind = (place) => {
    const kind = INPUTS[place], drawn = kind === "drawn" ? inputs().map((v) => Math.round(100 * v) / 100) : null;
    setInput({ kind, drawn });
  };
  const integers = (name) => ({
    get: () => input()[name], set: (given) => setInput({ [name]: Math.round(given) }), integer: true,
    legal: (given) => Number.isInteger(given) && given >= limits[name][0] && given <= limits[name][1],
  });
  const kinds = select("kind of input", INPUTS, () => INPUTS.indexOf(input().kind), setKind);
  inputKnobs = [
    ["pulses noise constant", knob("amplitude", "amplitude", {
      ...linear(-3, 3, 0.02), get: () => input().amplitude, set: (amplitude) => setInput({ amplitude }),
      legal: (given) => Math.abs(given) <= limits.amplitude[1],
      note: () => current().unit === 1 ? "" : `times ${current().unit}`,
    })],
    ["pulses", knob("period", "period", { ...linear(2, 120, 1), unit: "steps", ...integers("period") })],
    ["pulses", knob("width", "width", { ...linear(1, 60, 1), unit: "steps", ...integers("width") })],
    ["noise", knob("seed", "seed", { ...linear(0, 99, 1), ...integers("seed") })],
  ];
  const clear = make("button", {}, "clear");
  clear.addEventListener("click", () => { setInput({ kind: "drawn", drawn: new Array(stepCount()).fill(0) }); update(); });
  const help = make("p", { class: "muted help" }, "Draw in the plot, or focus it and use the arrow keys.");
  byId("input").replaceChildren(make("div", { class: "line" }, kinds), ...inputKnobs.map(([, each]) => each.element), help, clear);
  controls.push(() => {
    for (const [kinds, each] of inputKnobs) { each.element.hidden = !kinds.split(" ").includes(input().kind); each.show(); }
    clear.hidden = input().kind !== "drawn";
  });
}

function buildTarget() {
  const target = () => settings.target, of = () => ["output", ...current().shown];
  const shown = check("show gradients", () => settings.gradients, (on) => {
    Object.assign(settings, { gradients: on, target: newSettings().target });
    buildRows();
  });
  const which = select("output or state", of(), () => of().indexOf(target().of), (place) => { target().of = of()[place]; });
  const all = check("sum over all steps", () => target().all, (on) => { target().all = on; });
  const step = knob("step", "step", {
    ...linear(0, stepCount() - 1, 1), get: () => target().step, integer: true, legal: (given) => Number.isInteger(given) && given >= 0 && given < stepCount(),
    set: (given) => { Object.assign(target(), { step: given, all: false }); },
  });
  const help = make("p", { class: "muted help" }, "Or click on the output or a state.");
  const chosen = [make("div", { class: "line" }, make("label", {}, "of"), which), make("div", { class: "line" }, all), step.element, help];
  byId("target").replaceChildren(make("div", { class: "line" }, shown), ...chosen);
  controls.push(step.show, () => { for (const each of chosen) each.hidden = !settings.gradients; });
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

