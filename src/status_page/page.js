"use strict";
const live = document.getElementById("live");
const state = document.getElementById("state");
const full = document.documentElement.dataset.full === "yes";
const events = new EventSource(full ? "?events&full" : "?events");
let late;
events.onopen = () => {
  clearTimeout(late);
  late = undefined;
  state.textContent = "live";
};
events.onmessage = event => { live.innerHTML = event.data; };
events.onerror = () => {
  // Each stream ends after a while and is asked for again by the browser, which is nothing to tell of.
  late ??= setTimeout(() => { state.textContent = "not connected"; }, 5000);
  // Refused, as when too many look at once: then the browser does not ask again.
  if (events.readyState === EventSource.CLOSED) again();
};
function again() {
  setTimeout(async () => {
    // What a proxy shows while nobody is behind it would never ask.
    const there = await fetch(location.href, { cache: "no-store" }).then(page => page.ok, () => false);
    if (there) location.reload(); else again();
  }, 5000);
}
