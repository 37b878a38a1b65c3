"use strict";
// What all HTML pages share: elements, canvases, axes, and the theme.
const page = (() => {
  const byId = (id) => document.getElementById(id);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children); // strings become text, never markup
    return element;
  }

  // match the canvas to its size on the screen in device pixels, and clear it
  function fitted(canvas) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    const w = Math.max(1, Math.round(width * ratio)), h = Math.max(1, Math.round(height * ratio));
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    return { g, ratio, width, height };
  }

  // about count round numbers between low and high: steps of 1, 2 or 5 times a power of ten
  function ticks(low, high, count, whole) {
    const rough = Math.max(high - low, 1e-12) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough));
    let step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
    if (whole) step = Math.max(1, Math.round(step));
    const list = [];
    for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k++) list.push(+(k * step).toPrecision(12));
    return list;
  }

  // One call of `draw` in the next frame, however often it was wanted.
  function oncePerFrame(draw) {
    let pending = false;
    return () => {
      if (pending) return;
      pending = true;
      requestAnimationFrame(() => { pending = false; draw(); });
    };
  }

  // the colours of the style by name: `--ink` as `ink`
  function colours(...names) {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  // Follow the scheme of the system until the reader switches; `changed` reads the colours anew.
  function themes(changed) {
    const dark = matchMedia("(prefers-color-scheme: dark)"), { dataset } = document.documentElement;
    const set = (theme) => { dataset.theme = theme; changed(); };
    const follow = () => set(dark.matches ? "dark" : "light");
    const other = () => {
      dark.removeEventListener("change", follow);
      set(dataset.theme === "dark" ? "light" : "dark");
    };
    dark.addEventListener("change", follow);
    byId("theme").addEventListener("click", other);
    follow();
    return other;
  }

  return { byId, clamp, make, fitted, ticks, oncePerFrame, colours, themes };
})();
