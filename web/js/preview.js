// Inspect Conditioning's reading, in the node: the words by score before and after steering, and every category.

import { element } from "./style.js";
import { say } from "./words.js";

const NEUTRAL_UPTO = 1;
const FULL_AT = 4;
const signed = (value, digits = 1) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);

function paint(score) {
  const share = Math.min(Math.max((Math.abs(score) - NEUTRAL_UPTO) / (FULL_AT - NEUTRAL_UPTO), 0), 1);
  const full = score > 0 ? "#d93636" : "#2c82c9";
  const ground = "color-mix(in srgb, currentColor 12%, transparent)";
  return `background: color-mix(in srgb, ${full} ${Math.round(share * 100)}%, ${ground});${share > 0.45 ? "color: #fff;" : ""}`;
}

function words(reading, scores) {
  const texts = reading.words ?? scores.map((_, index) => String(index + 1));
  return element("div", { className: "words" }, ...texts.map((text, index) => element("span", { style: paint(scores[index]), title: signed(scores[index]) }, text)));
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function scale(reading) {
  const all = [reading.after, reading.before ?? {}].flatMap((names) => Object.values(names)).flatMap((one) => [one.score, one.threshold, ...one.band]);
  const low = Math.min(-3, ...all) - 0.4;
  const high = Math.max(4, ...all) + 0.4;
  return (score) => `${((score - low) / (high - low)) * 100}%`;
}

function gauge(now, was, at) {
  const drawing = svg("svg", {});
  const percent = (score) => parseFloat(at(score));
  drawing.append(
    svg("rect", { x: 0, y: 6, width: "100%", height: 2, fill: "currentColor", opacity: 0.12 }),
    svg("rect", { x: at(now.band[0]), y: 1, width: `${percent(now.band[1]) - percent(now.band[0])}%`, height: 12, rx: 2, fill: "#3d9a68", opacity: 0.35 }),
    svg("line", { x1: at(now.threshold), x2: at(now.threshold), y1: 0, y2: 14, stroke: "currentColor", "stroke-width": 1.5 }),
  );
  const over = (one) => (one.score > one.threshold ? "#e04848" : "currentColor");
  if (was) {
    drawing.append(
      svg("line", { x1: at(was.score), x2: at(now.score), y1: 7, y2: 7, stroke: "currentColor", "stroke-width": 1.5, opacity: 0.6 }),
      svg("circle", { cx: at(was.score), cy: 7, r: 4, fill: "none", stroke: over(was), "stroke-width": 1.5 }),
    );
  }
  drawing.append(svg("circle", { cx: at(now.score), cy: 7, r: 4, fill: over(now) }));
  return drawing;
}

/** The elements that show a reading; `name` is whose scores colour the words, `choose` is called with another. */
export function draw(reading, name, choose) {
  const chosen = reading.after[name] ? name : "global";
  const { global: now } = reading.after;
  const was = reading.before?.global;
  const head = element(
    "div",
    { className: "row" },
    element("span", { className: reading.flagged ? "pill over" : "pill" }, say(reading.flagged ? "flagged" : "not flagged")),
    was && element("span", { className: was.score > was.threshold ? "score over" : "score" }, signed(was.score, 2)),
    element("span", { className: "score" }, was ? `→ ${signed(now.score, 2)}` : signed(now.score, 2)),
    element("span", { className: "faint" }, say("threshold {value} at a budget of {budget}%", { value: signed(now.threshold, 2), budget: (reading.budget * 100).toFixed(1) })),
  );
  const before = reading.before?.[chosen].words;
  const after = reading.after[chosen].words;
  const same = before && before.every((score, index) => score === after[index]);
  const rows = !before ? [words(reading, after)] : same
    ? [element("h6", {}, say("steering left these words as they were")), words(reading, after)]
    : [element("h6", {}, say("before steering")), words(reading, before), element("h6", {}, say("after steering")), words(reading, after)];
  const at = scale(reading);
  const table = element("table", {}, ...Object.entries(reading.after).map(([category, one]) => {
    const earlier = reading.before?.[category];
    const numbers = earlier ? `${signed(earlier.score)} → ${signed(one.score)}` : signed(one.score);
    const title = element("td", {}, category === "global" ? say("all together") : category);
    const row = element("tr", { className: category === chosen ? "chosen" : "", title: say("Colour the words by this") }, title, element("td", {}, gauge(one, earlier, at)), element("td", {}, numbers));
    row.style.cursor = "pointer";
    row.addEventListener("click", () => choose(category === "global" ? "" : category));
    return row;
  }));
  const legend = element("div", { className: "faint" }, [say("green: where 95% of harmless prompts lie; line: threshold"), reading.before && say("ring: before, dot: after"), say("in standard deviations of harmless prompts")].filter(Boolean).join("; "));
  return [head, ...rows, table, legend];
}
