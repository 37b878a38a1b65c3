// Settings in the address, and links to settings with what they show; a page has `parse`, `newSettings`, `follow`.

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
