"use strict";
const live = document.getElementById("live");
const state = document.getElementById("state");
const full = document.documentElement.dataset.full === "yes";
const events = new EventSource(full ? "?events&full" : "?events");
events.onopen = () => { state.textContent = "live"; };
events.onmessage = event => { live.innerHTML = event.data; };
events.onerror = () => {
  state.textContent = "not connected";
  // Refused, as when too many look at once: then the browser does not try again by itself.
  if (events.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
};
