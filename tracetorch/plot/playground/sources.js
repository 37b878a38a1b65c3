// The neuron in other languages: printed by the library, with marks where its numbers stand.
const LANGUAGES = ["PyTorch", "C", "Verilog"];
let language = "PyTorch";

function buildSources() {
  byId("languages").replaceChildren(...LANGUAGES.map((name) => {
    const button = make("button", {}, name);
    button.addEventListener("click", () => {
      language = name;
      showSource();
      byId("code").scrollIntoView({ block: "nearest" });
    });
    return button;
  }));
  byId("copy").addEventListener("click", () => copy(source().text, `${language === "PyTorch" ? "Python" : language} copied.`));
}

const source = () => ({ PyTorch: () => ({ text: python(), note: "" }), C: inC, Verilog: inVerilog })[language]();

function showSource() {
  const { text, note } = source(), isPython = language === "PyTorch";
  byId("languages").querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === language)));
  byId("python").hidden = !isPython;
  byId("source").hidden = isPython || text === "";
  byId("copy").hidden = text === "";
  // a line may break behind these signs, and is copied whole
  if (isPython) byId("python").replaceChildren(...text.split(/(?<=[=.(,])(?=\S)/).flatMap((part) => [part, make("wbr")]));
  else if (byId("source").textContent !== text) byId("source").textContent = text;
  byId("source-note").textContent = settings.pair && !isPython ? `Of neuron ${settings.shown + 1} alone. ${note}` : note;
}

const filled = (text, number) => text.replace(/⟨([^⟩]+)⟩/g, (_, name) => number(name));
const printedOf = (texts) => texts[Math.max(0, current().choices.filter(({ name }) => name === "reset").map(choiceOf)[0] ?? 0)];
const paramOf = (name) => run.params[current().params.findIndex((param) => param.name === name)];

// as few digits as give the same float32
function single(value) {
  const number = Math.fround(value);
  if (!Number.isFinite(number)) return `(${number < 0 ? "-" : ""}1.0f / 0.0f)`;
  const digits = [6, 7, 8, 9].find((count) => Math.fround(+number.toPrecision(count)) === number);
  const text = String(+number.toPrecision(digits)).replace(/^(-?\d+)$/, "$1.0");
  return number < 0 ? `(${text}f)` : `${text}f`;
}

function inC() {
  const { sources, states } = current(), [before, behind] = cHeader;
  const number = (name) => single(name.startsWith("start ") ? run.start[states.indexOf(name.slice(6))] : paramOf(name));
  const model = filled(printedOf(sources.c), number);
  return {
    text: `/* ---- model.c ---- */\n${model}\n/* ---- model.h ---- */\n${before}${sources.members}${behind}`,
    note: "As tt.export.c writes it, in float32. The page computes in float64: where a membrane meets its threshold to the last digit of float32, they may differ.",
  };
}

// One integer of a state: a power of two, so that twice what the states reach fits into their bits.
function unitOf() {
  const { neuron, total, record, lines } = run;
  const kept = record.filter((_, k) => neuron.states[k] !== "prev_output" && (neuron.states[k] !== "rec" || !neuron.spiking));
  const most = [total, ...kept, ...lines].flatMap((list) => [...list]).filter(Number.isFinite).reduce((found, each) => Math.max(found, Math.abs(each)), 0);
  return 2 ** Math.ceil(Math.log2(2 * (most || 1) / (2 ** (integers.states - 1) - 1)));
}

function integerOf(name, unit) {
  const { params, spiking } = current(), { kind } = params.find((param) => param.name === name), real = paramOf(name);
  const limit = (value, low, high) => clamp(Math.round(value), low, high);
  if (kind === "decay") return limit(real * 2 ** integers.decays, 0, 2 ** integers.decays - 1);
  if (kind === "positive" || kind === "negative") return limit(Math.abs(real) / unit, 1, 2 ** (integers.states - 1) - 1);
  if (name.endsWith("_scale")) return limit(real * integers.spike, -8 * integers.spike, 8 * integers.spike);
  const trace = name === "rec_weight" ? 2 ** integers.weights * (spiking ? unit / integers.spike : unit) : 1;
  return limit(real * trace / unit, -(2 ** 23), 2 ** 23);
}

function inVerilog() {
  const { sources, spiking, states, params } = current();
  if (sources.refusal) return { text: "", note: `No circuit: ${sources.refusal}` };
  const unit = unitOf();
  const text = filled(printedOf(sources.verilog), (mark) => {
    const [name, bits] = mark.split(" ");
    // the size of a spike that has a trace, where it is no parameter
    const number = name.endsWith("_scale") && !params.some((param) => param.name === name) ? integers.spike : integerOf(name, unit);
    return `${bits}'d${number < 0 ? number + 2 ** bits : number}`;
  });
  const sized = states.includes("rec") || params.some(({ name }) => name.endsWith("_scale"));
  const spike = !spiking ? "" : ` A spike is ${sized ? integers.spike : 1}.`;
  return {
    text: `// One integer of x and of the states is 2**${Math.log2(unit)}.${spike}\n${text}`,
    note: `The integer neuron, rounded as tt.quantize does: decays of ${integers.decays} bits, states of ${integers.states}. It may fire some steps earlier or later than the page.`,
  };
}
