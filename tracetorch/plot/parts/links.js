// Settings in the address, and links to settings with what they show; a page has `parse`, `newSettings`, `fragment`, `follow`.
let loaded = ""; // the hash that the settings are of

function load() {
  loaded = location.hash;
  const text = loaded.slice(1);
  if (!text) return "";
  try {
    settings = parse(text);
    return "";
  } catch {
    settings = newSettings();
    return "The settings in the address are not those of this page and were ignored.";
  }
}

// A new hash whose event is still to come is not written over.
function store() {
  if (location.hash !== loaded) return;
  const text = fragment();
  try { window.history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search); } catch { /* an address that cannot change */ }
  loaded = location.hash;
}

const caption = (text) => { byId("caption").textContent = text; byId("caption").hidden = text === ""; };

function buildTries() {
  byId("tries").replaceChildren(...tries.map(({ name, text, fragment: to }) => {
    const link = make("a", { href: `#${to}`, "data-settings": "" }, name);
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      follow(to, text);
    });
    return make("li", {}, link);
  }));
  byId("story").hidden = tries.length === 0;
}
