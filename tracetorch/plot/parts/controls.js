// Labelled controls: a field with a slider, a choice, a check box. Every change calls the page's `update`.
const { byId, clamp, make, fitted, ticks, oncePerFrame } = page;
const round = (value, digits = 3) => +value.toPrecision(digits);
const brief = (value) => {
  if (!Number.isFinite(value)) return "not finite";
  const text = Math.abs(value) < 1e6 ? String(round(value)) : value.toExponential(2).replace("e+", "e");
  return text.replaceAll("-", "−");
};
const words = (name) => name.replaceAll("_", " ");
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const say = (text) => { byId("note").textContent = text; };

// `place` and `at` convert between the value of a slider and 0 ... 1
const logarithmic = (low, high) => ({
  at: (place) => round(low * (high / low) ** place), place: (shown) => Math.log(shown / low) / Math.log(high / low),
});
const linear = (low, high, unit) => ({
  at: (place) => round(Math.round((low + (high - low) * place) / unit) * unit, 6), place: (shown) => (shown - low) / (high - low),
});

// A labelled field and slider.
function knob(name, label, { unit = "", at, place, legal, get, set, note, slope = false, integer = false }) {
  const field = make("input", { type: "number", step: integer ? "1" : "any", "aria-label": `${label}${unit && `, ${unit}`}` });
  const slider = make("input", { type: "range", min: 0, max: 1000, step: 1, "aria-label": `${label}, slider` });
  const small = make("small"), gradient = make("small", { class: "slope" });
  const element = make("div", { class: slope ? "knob sloped" : "knob", "data-name": name },
    make("span", {}, label, small), make("span", { class: "value" }, field, slope ? "" : unit), slider, ...(slope ? [gradient] : []));
  const show = () => {
    if (document.activeElement !== field) { field.value = get(); field.toggleAttribute("aria-invalid", false); }
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
  // a browser drops a comma that is typed or pasted, and 0,12 would be 12
  field.addEventListener("beforeinput", (event) => {
    if (!event.data?.includes(",")) return;
    event.preventDefault();
    document.execCommand("insertText", false, event.data.replaceAll(",", "."));
  });
  field.addEventListener("blur", show);
  return { element, show, gradient };
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
