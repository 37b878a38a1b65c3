// What to try: links to settings, and what they show.
const caption = (text) => { byId("caption").textContent = text; byId("caption").hidden = text === ""; };

function buildTries() {
  byId("tries").replaceChildren(...tries.map(({ name, text, fragment: to }) => {
    const link = make("a", { href: `#${to}`, "data-settings": "" }, name);
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      settings = parse(to);
      begin();
      caption(text);
      // on a narrow page what it shows is below the list
      if (narrow.matches) byId("caption").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth" });
    });
    return make("li", {}, link);
  }));
  byId("story").hidden = tries.length === 0;
}
