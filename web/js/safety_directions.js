// The pack in the page. The graph runs the same without it.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { facts, forget, source, state, widget } from "./graph.js";
import { draw } from "./preview.js";
import { addPanel, addStyle, element } from "./style.js";
import { learn, say } from "./words.js";

const STEERING = ["SafetyDirection", "SafetyDirectionApply", "SafetyDirectionCLIP", "SafetyDirectionGuard"];
const CATEGORIES = { SafetyDirection: "categories", SafetyDirectionApply: "categories", SafetyDirectionCLIP: "categories", SafetyDirectionGuard: "categories", SafetyDirectionSweep: "categories", SafetyDirectionInspect: "category" };
const FILES = { SafetyDirection: ["direction", "direction"], SafetyDirectionLoad: ["direction", "direction"], SafetyDirectionLoadAligned: ["aligned", "name"] };
const READING = "safety_direction_reading";
const BADGES = {
  aligned: ["aligned", "#2f7d54"],
  stale: ["stale: aligned to another CLIP", "#b3541e"],
  double: ["double: steered already", "#8a6d1a"],
};

const refreshers = new Set();
let waiting = false;

/** Look again at what leads into our nodes, once, after whatever is changing has changed. */
function refresh() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    refreshers.forEach((one) => one());
  });
}

function chain(node, name, after) {
  const before = node[name];
  node[name] = function (...parts) {
    const result = before?.apply(this, parts);
    after.apply(this, parts);
    return result;
  };
}

function watch(node, look, close) {
  refreshers.add(look);
  chain(node, "onRemoved", () => {
    refreshers.delete(look);
    close();
  });
  chain(node, "onConnectionsChange", refresh);
  refresh();
}

function addFacts(node, [kind, name]) {
  const { show, close } = addPanel(node, "about this file");
  const picker = widget(node, name);
  let shown;
  const look = async () => {
    const value = picker?.value;
    if (!value || value === shown) return;
    shown = value;
    const known = await facts(kind, value);
    if (picker.value !== value) return;
    if (!known || known.error) return show(element("div", { className: "bad" }, known?.error ?? ""));
    const lines = {
      learned: known.layers ? say("in {source}, layer {layers}", known) : say("of {source}", known),
      categories: known.categories.join(", "),
      fits: known.slots && Object.entries(known.slots).map(([slot, width]) => `${slot} (${width})`).join(", "),
      made: known.created && say("{created}, {pairs} pairs, {anchors} harmless prompts", { ...known, pairs: Object.values(known.pairs ?? {}).reduce((sum, count) => sum + count, 0) }),
      licence: known.licence ?? "",
      file: `${known.megabytes} MB, ${known.sha256}`,
    };
    const rows = Object.entries(lines).filter(([, text]) => text != null && text !== undefined);
    show(element("div", { className: "facts" }, ...rows.flatMap(([label, text]) => [element("span", { className: "faint" }, say(label)), element("span", {}, text || say("not stated"))])));
  };
  if (picker) chain(picker, "callback", refresh);
  watch(node, look, close);
}

function addCategories(node, name) {
  const { show, close } = addPanel(node, "categories of this direction");
  const input = widget(node, name);
  const many = name === "categories";
  let key;
  const names = () => (input.value ?? "").split(",").map((part) => part.trim()).filter(Boolean);
  const set = (value) => {
    input.value = value;
    input.callback?.(value);
    node.graph?.setDirtyCanvas(true, true);
  };
  const look = async () => {
    const from = source(node);
    const known = from?.[1] ? await facts(...from) : null;
    const offered = known?.categories ?? Object.keys(node.properties?.[READING]?.after ?? {}).filter((one) => one !== "global");
    const chosen = names();
    if (key === `${offered}|${chosen}`) return;
    key = `${offered}|${chosen}`;
    const chip = (text, pressed, click) => {
      const button = element("button", { type: "button", "aria-pressed": String(pressed) }, text);
      button.addEventListener("click", click);
      return button;
    };
    const toggle = (one) => {
      const now = names();
      const rest = now.filter((other) => other !== one);
      set(many ? (rest.length < now.length ? rest : [...now, one]).join(", ") : now.includes(one) ? "" : one);
    };
    const chips = offered.map((one) => chip(one, chosen.includes(one), () => toggle(one)));
    show(element("div", { className: "row" }, ...(offered.length ? [chip(say("all"), !chosen.length, () => set("")), ...chips] : [element("span", { className: "faint" }, say("categories show here once the direction is known"))])));
  };
  if (input) {
    chain(input, "callback", refresh);
    watch(node, look, close);
  }
}

/** What a run of a node found worth saying: which languages its text encoder doesn't read. */
function addRemark(node) {
  let panel;
  chain(node, "onExecuted", (output) => {
    const text = [output?.text ?? []].flat().join(" ");
    if (!text && !panel) return;
    panel ??= addPanel(node, "remark");
    panel.show(element("div", { className: "faint" }, text));
  });
}

/** A prompt that comes through a link shows nothing here; it takes a line, not the node's free height. */
function shrinkLinkedPrompt(node) {
  const { options } = widget(node, "prompt") ?? {};
  const linked = () => node.inputs?.some((input) => input.name === "prompt" && input.link != null);
  if (options) options.getMinHeight = options.getMaxHeight = () => (linked() ? 20 : undefined);
}

function addPreview(node) {
  const { show, close } = addPanel(node, "reading");
  const category = widget(node, "category");
  const choose = (name) => {
    category.value = name;
    category.callback?.(name);
  };
  let key;
  const look = () => {
    const reading = node.properties?.[READING];
    const now = `${category?.value}|${JSON.stringify(reading)}`;
    if (key === now) return;
    key = now;
    show(...(reading ? draw(reading, category?.value?.trim() || "global", choose) : [element("div", { className: "faint" }, say("the words show here when this has run"))]));
  };
  chain(node, "onExecuted", (output) => {
    const reading = output?.safety_direction?.[0];
    if (!reading?.after) return;
    node.properties[READING] = reading;
    refresh();
  });
  watch(node, look, close);
}

function addBadge(node) {
  const found = { ran: "", key: "" };
  const badge = () => {
    const now = state(node);
    const key = `${now}|${node.inputs?.map((input) => input.link)}`;
    if (found.key !== key) Object.assign(found, { key, ran: "" }); // what a run said holds until the links change
    const [text, color] = BADGES[found.ran || now] ?? ["", ""];
    return new globalThis.LGraphBadge({ text: text && say(text), fgColor: "white", bgColor: color });
  };
  node.badges?.push(badge);
  node.safetyDirectionState = (ran) => {
    badge();
    found.ran = ran;
    node.graph?.setDirtyCanvas(true, true);
  };
  chain(node, "onExecuted", (output) => output?.safety_direction?.[0]?.state && node.safetyDirectionState(output.safety_direction[0].state));
}

app.registerExtension({
  name: "SafetyDirections",
  init: () => learn(app.extensionManager.setting.get("Comfy.Locale")),
  setup() {
    addStyle();
    api.addEventListener("execution_error", ({ detail }) => {
      const node = detail.exception_type?.endsWith("StaleAlignment") && app.graph.getNodeById(detail.node_id);
      if (node) node.safetyDirectionState?.("stale");
    });
  },
  nodeCreated(node) {
    const type = node.comfyClass;
    if (FILES[type]) addFacts(node, FILES[type]);
    if (CATEGORIES[type]) addCategories(node, CATEGORIES[type]);
    if (type === "SafetyDirectionInspect") addPreview(node);
    if (type === "SafetyDirection" || type === "SafetyDirectionAlign") addRemark(node);
    if (type === "SafetyDirectionInspect" || type === "SafetyDirectionSweep") shrinkLinkedPrompt(node);
    if (STEERING.includes(type) && globalThis.LGraphBadge) addBadge(node);
  },
  loadedGraphNode: refresh,
  afterConfigureGraph: refresh,
  refreshComboInNodes() {
    forget();
    refresh();
  },
});
