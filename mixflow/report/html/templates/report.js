// Charts, the line through the program, and filters. Without it the tables still say it all.
const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = {};

// --- charts ---

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function config() {
  const [ink, soft, line] = ["ink", "soft", "line"].map(color);
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: "transparent",
    font,
    view: { stroke: null },
    axis: {
      labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500,
    },
    legend: { labelColor: ink, labelFontSize: 13, symbolType: "circle", symbolOpacity: 1 },
    range: { category: [color("plain"), color("mixflow"), ink, soft] },
  };
}

function logarithmic({ spec, log }) {
  const changed = structuredClone(spec);
  const [curve, points] = changed.layer;
  curve.mark = { type: "line", interpolate: "step-after", strokeWidth: 1.75 };
  for (const { encoding } of [curve, points]) {
    encoding.y.scale = { type: "log", domain: log, clamp: true, nice: false };
  }
  return changed;
}

async function draw(id, spec) {
  views[id]?.finalize();
  views[id] = await window.vegaEmbed(`#${id}`, spec, {
    actions: false,
    // The policy of the page forbids code made of text: expressions are interpreted.
    ast: true,
    config: config(),
    renderer: "svg",
    tooltip: { theme: dark.matches ? "dark" : "light" },
  });
}

async function drawAll() {
  if (charts.front) await draw("front-chart", charts.front.spec);
  if (!charts.timeline) return;
  const scale = document.querySelector("[name=scale]:checked").value;
  await draw("timeline", scale === "log" ? logarithmic(charts.timeline) : charts.timeline.spec);
  await draw("buffers", charts.peak.spec);
  moveCursor();
  document.documentElement.dataset.drawn = `${dark.matches ? "dark" : "light"} ${scale}`;
}

// One drawing at a time: whoever asks while one is made gets one after it.
let drawing = Promise.resolve();
function redraw() {
  drawing = drawing.then(drawAll);
}

// --- the line through the program ---

const cursor = document.getElementById("cursor");

function lastBefore(points, share) {
  return points.findLast((point) => point.share <= share) ?? points[0];
}

function element(tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

function described(name, points, share) {
  const found = lastBefore(points, share).said;
  const what = element("dd", "", "what");
  what.append(element("code", found.value), " ", element("code", found.source, "at"), " ");
  what.append(element("code", found.code, "soft"));
  const head = element("dt", name, name === "mixflow" ? "ours" : "");
  return [head, element("dd", found.alive), what];
}

function moveCursor() {
  const share = Number(cursor.value);
  const byProgram = Object.groupBy(charts.timeline.spec.data.values, (point) => point.program);
  const rows = Object.entries(byProgram).flatMap(([name, points]) => described(name, points, share));
  document.getElementById("readout").replaceChildren(...rows);
  cursor.setAttribute("aria-valuetext", `${Math.round(100 * share)}%`);
  views.timeline?.view.signal("cursor", share).runAsync();
}

// --- filters ---

function matches(item, fields) {
  return fields.every(({ name, value }) => {
    if (!value) return true;
    if (name !== "text") return item.dataset[name] === value;
    return item.textContent.toLowerCase().includes(value.toLowerCase());
  });
}

function filter(controls) {
  const items = [...document.getElementById(controls.dataset.filters).children];
  const fields = [...controls.querySelectorAll("input, select")];
  for (const item of items) item.hidden = !matches(item, fields);
  const shown = items.filter((item) => !item.hidden).length;
  controls.querySelector("output").textContent = `${shown} of ${items.length}`;
}

for (const controls of document.querySelectorAll("[data-filters]")) {
  controls.addEventListener("input", () => filter(controls));
  filter(controls);
}
cursor?.addEventListener("input", moveCursor);
for (const radio of document.querySelectorAll("[name=scale]")) radio.addEventListener("change", redraw);
dark.addEventListener("change", redraw);
redraw();
