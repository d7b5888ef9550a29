// Fills in what changes; without it the page is the same, as of its loading.
"use strict";
(() => {
  const places = new Map();
  for (const place of document.querySelectorAll("[data-live]")) places.set(place.dataset.live, place);
  const note = document.getElementById("following");
  if (!places.size || !window.EventSource) return;
  const source = new EventSource("/live" + location.search);
  source.onmessage = (message) => {
    const values = JSON.parse(message.data);
    for (const [name, text] of Object.entries(values)) {
      const place = places.get(name);
      if (!place || place.textContent === text) continue;
      place.textContent = text;
      if (name.endsWith("-state")) place.className = "state " + text;
    }
    if (note) note.textContent = "live";
  };
  source.onerror = () => {
    if (note) note.textContent = "not following just now";
  };
  setInterval(async () => {
    const chart = document.getElementById("chart");
    if (!chart || document.hidden) return;
    try {
      const answer = await fetch("/chart");
      if (answer.ok) {
        const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
        chart.replaceWith(parsed.getElementById("chart"));
      }
    } catch {
      // The next one will do.
    }
  }, 5000);
})();
