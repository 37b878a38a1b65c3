// What to try: take settings, train as they say, and tell what they show.
function follow(fragment, text) {
  settings = parse(fragment);
  begin();
  caption(text);
  // on a narrow page what it shows is below the list
  if (narrow.matches) byId("caption").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth" });
}
