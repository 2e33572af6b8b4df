// What leads into a node: the direction it uses, the CLIP its prompt comes from, what already steers it.

import { api } from "../../../scripts/api.js";

const BYPASSED = 4;
const ONE = "SafetyDirection"; // loads, aligns, steers and guards by itself
const STEERS_CLIP = [ONE, "SafetyDirectionCLIP"];
const known = new Map();

/** What the server says about a file, or null. Asked once, and again after `forget`. */
export function facts(kind, name) {
  const key = `${kind}/${name}`;
  if (!known.has(key)) {
    const answer = api.fetchApi(`/safety_directions/${kind}/${encodeURIComponent(name)}`);
    known.set(key, answer.then((response) => (response.ok ? response.json() : null)).catch(() => null));
  }
  return known.get(key);
}

export function forget() {
  known.clear();
}

export function widget(node, name) {
  return node?.widgets?.find((one) => one.name === name);
}

/** The node and output that an input's link really comes from, past reroutes and bypassed nodes; null where it can't be followed. */
export function origin(node, name) {
  const input = node?.inputs?.find((one) => one.name === name);
  return input?.link == null ? null : follow(node.graph, input.link);
}

function follow(graph, id) {
  for (let steps = 0; steps < 100; steps++) {
    const link = graph?.links?.get ? graph.links.get(id) : graph?.links?.[id];
    const node = link && graph.getNodeById(link.origin_id);
    if (!node) return null;
    const through = node.type === "Reroute" || node.mode === BYPASSED;
    if (!through) return { node, slot: link.origin_slot };
    const kind = node.outputs?.[link.origin_slot]?.type;
    const next = node.inputs?.find((one) => node.type === "Reroute" || one.type === kind);
    if (next?.link == null) return null;
    id = next.link;
  }
  return null;
}

/** Where a node's alignment comes from, as [kind, name] for `facts`; null where the graph doesn't tell. */
export function source(node) {
  const own = node?.type === "SafetyDirectionAlign" || node?.type === ONE;
  const from = origin(node, "aligned")?.node ?? (own ? node : null);
  if (from?.type === ONE) return ["direction", widget(from, "direction")?.value];
  if (from?.type === "SafetyDirectionLoadAligned") return ["aligned", widget(from, "name")?.value];
  const direction = from && origin(from, "direction")?.node;
  if (direction?.type === "SafetyDirectionLoad") return ["direction", widget(direction, "direction")?.value];
  return null;
}

/** "node:output" of the CLIP behind an input, under any node that steers it. */
function clipRoot(node, name = "clip") {
  const from = origin(node, name);
  if (STEERS_CLIP.includes(from?.node.type)) return clipRoot(from.node);
  return from && `${from.node.id}:${from.slot}`;
}

/** The node that steers the CLIP which a node takes, in a list; an empty one where none does. */
function steersClip(node) {
  return [origin(node, "clip")?.node].filter((one) => STEERS_CLIP.includes(one?.type));
}

/** The encode nodes and the steering nodes that a conditioning went through. */
function behind(node, name) {
  const encoders = [];
  const steering = [];
  const waiting = [origin(node, name)?.node];
  const seen = new Set();
  while (waiting.length) {
    const one = waiting.pop();
    if (!one || seen.has(one) || seen.size > 500) continue;
    seen.add(one);
    if (one.type === "SafetyDirectionApply") steering.push(one);
    const inputs = (one.inputs ?? []).filter((input) => input.type === "CONDITIONING");
    waiting.push(...inputs.map((input) => origin(one, input.name)?.node));
    if (!inputs.length && one.inputs?.some((input) => input.type === "CLIP")) encoders.push(one);
  }
  return { encoders, steering };
}

/** "aligned", "stale" (fitted to another CLIP) or "double" (steered by this direction before); "" where the graph doesn't tell. */
export function state(node) {
  const same = (other) => String(source(other)) === String(source(node));
  if (node.type === ONE) return !clipRoot(node) ? "" : steersClip(node).some(same) ? "double" : "aligned";
  const fitted = origin(node, "aligned")?.node;
  if (!fitted) return "";
  const clip = fitted.type === "SafetyDirectionAlign" || fitted.type === ONE ? clipRoot(fitted) : null;
  if (node.type === "SafetyDirectionCLIP") return clip && clipRoot(node) && clip !== clipRoot(node) ? "stale" : "aligned";
  if (node.type === "SafetyDirectionGuard") return origin(node, "model")?.node.type === "SafetyDirectionGuard" ? "double" : "aligned";
  const { encoders, steering } = behind(node, "conditioning");
  const through = encoders.flatMap(steersClip);
  if ([...steering, ...through].some(same)) return "double";
  const roots = encoders.map((one) => clipRoot(one)).filter(Boolean);
  return clip && roots.length && !roots.includes(clip) ? "stale" : "aligned";
}
