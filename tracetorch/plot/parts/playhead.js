// A play head: a step that moves through time. `head` is null where all of time is shown.
let head = null, playing = 0, played = 0;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const SECONDS = 5; // of a whole run

// Build the head's button and slider: `steps` tells how many there are, `moved` draws.
function buildPlayhead(steps, moved) {
  const slider = byId("head"), button = byId("play");
  const show = () => {
    slider.max = steps();
    slider.value = head ?? steps();
    slider.setAttribute("aria-valuetext", head === null ? "all steps" : `step ${head}`);
    byId("at").textContent = head === null ? `${steps()} steps` : `step ${head}`;
    button.textContent = playing ? "pause" : "play";
  };
  const stop = () => { cancelAnimationFrame(playing); playing = 0; show(); };
  const frame = (time) => {
    if (played === null) played = time - (head ?? 0) / steps() * SECONDS * 1000;
    head = Math.floor((time - played) / 1000 / SECONDS * steps());
    if (head >= steps()) { head = null; stop(); moved(); return; }
    playing = requestAnimationFrame(frame);
    show();
    moved();
  };
  const play = (from = 0) => { stop(); head = from; played = null; playing = requestAnimationFrame(frame); show(); };
  button.addEventListener("click", () => { if (playing) stop(); else play(head ?? 0); });
  slider.addEventListener("input", () => {
    const wanted = +slider.value;
    stop();
    head = wanted >= steps() ? null : wanted;
    show();
    moved();
  });
  return { show, play, stop: () => { stop(); head = null; show(); } };
}
