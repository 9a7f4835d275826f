"use strict";
// Everything works without this script but the switch of colours, the values under the pointer,
// the search, and the choice of a generation, of which each can be opened instead.
const tip = document.getElementById("tip");
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

function text(value) {
  if (value === null || value === undefined) return "-";
  return Math.abs(value) >= 10000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function line(parent, color, name, value) {
  const row = parent.appendChild(document.createElement("p"));
  if (color) row.appendChild(document.createElement("i")).className = color + " dot";
  row.append(name + " ");
  row.appendChild(document.createElement("b")).textContent = value;
}

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}

for (const figure of document.querySelectorAll("figure[data-values]")) {
  const values = JSON.parse(document.getElementById(figure.dataset.values).textContent);
  for (const plot of figure.querySelectorAll(".plot")) {
    const svg = plot.querySelector("svg");
    const axis = Number(plot.dataset.axis);
    const [left, right, top] = JSON.parse(svg.dataset.box);
    const [from, to] = JSON.parse(svg.dataset.span);
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", top);
    cursor.setAttribute("y2", svg.dataset.bottom);
    const show = (event) => {
      const box = svg.getBoundingClientRect();
      const place = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      const wanted = from + (place - left) / (right - left) * (to - from);
      let x = null;  // that of the nearest point of any curve
      for (const curve of values.curves) {
        const xs = curve.x[axis];
        if (!xs.length) continue;
        const found = xs[nearest(xs, wanted)];
        if (x === null || Math.abs(found - wanted) < Math.abs(x - wanted)) x = found;
      }
      if (x === null) return;
      const at = left + (x - from) / (to - from) * (right - left);
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      svg.appendChild(cursor);
      tip.replaceChildren();
      line(tip, "", axis ? values.axes[axis] : values.label, text(x));
      for (const curve of values.curves) {
        const xs = curve.x[axis];
        if (!xs.length) continue;
        const i = nearest(xs, x);
        if (xs.length > 1 && Math.abs(xs[i] - x) > (to - from) / 20) continue;
        const range = curve.low ? text(curve.low[i]) + " to " + text(curve.high[i]) : "";
        line(tip, curve.color, curve.name, curve.y ? text(curve.y[i]) + (range ? " (" + range + ")" : "") : range);
      }
      for (const [name, value] of values.levels) line(tip, "", name, text(value));
      tip.hidden = false;
      const beside = event.clientX + 14 + tip.offsetWidth > innerWidth ? event.clientX - 14 - tip.offsetWidth : event.clientX + 14;
      tip.style.left = Math.max(4, beside) + "px";
      tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4)) + "px";
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.remove(); });
  }
}

const filter = document.querySelector(".filter");
if (filter) {
  filter.hidden = false;
  const samples = [...document.querySelectorAll(".sample")];
  const texts = samples.map((sample) => sample.textContent.toLowerCase());
  const search = document.getElementById("search");
  const kinds = [...document.querySelectorAll("input[name=kind]")];
  const update = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = new Set(kinds.filter((kind) => kind.checked).map((kind) => kind.value));
    let count = 0;
    samples.forEach((sample, i) => {
      const fits = chosen.has(sample.dataset.kind) && words.every((word) => texts[i].includes(word));
      sample.hidden = !fits;
      count += fits;
    });
    document.getElementById("found").textContent = count + " of " + samples.length + " shown";
  };
  search.addEventListener("input", update);
  kinds.forEach((kind) => kind.addEventListener("change", update));
  update();
}

const choose = document.querySelector(".choose");
if (choose) {
  choose.hidden = false;
  choose.parentElement.classList.add("chooses");
  const generations = [...document.querySelectorAll(".generation")];
  const slider = document.getElementById("generation");
  const update = () => {
    generations.forEach((one, i) => {
      one.open = i === Number(slider.value);
      one.hidden = !one.open;
    });
    document.getElementById("chosen").textContent = generations[slider.value].dataset.generation;
  };
  slider.addEventListener("input", update);
  update();
}
