// Offer the same page of other versions, those that versions.json at the root of the site lists.
addEventListener("DOMContentLoaded", async () => {
  const switcher = document.querySelector(".versions");
  if (!switcher || !location.protocol.startsWith("http")) return; // a page on disk may fetch nothing
  const root = new URL(switcher.dataset.root, location.href);
  const here = new URL(switcher.dataset.here, location.href);
  const versions = await (await fetch(new URL("versions.json", root))).json();
  if (versions.length < 2) return;
  const select = switcher.querySelector("select");
  for (const { name, folder } of versions) {
    select.add(new Option(name, folder, false, name === switcher.dataset.name));
  }
  select.addEventListener("change", async () => {
    const start = new URL(select.value, root);
    const same = new URL(location.href.slice(here.href.length), start);
    const there = await fetch(same, { method: "HEAD" });
    location.href = there.ok ? same : start;
  });
  switcher.hidden = false;
});
