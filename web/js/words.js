// What the panels say, in the page's language: locales/<language>/main.json has it by the English words, which are said where it has none.

import { api } from "../../../scripts/api.js";

let words = {};

export async function learn(language) {
  const answer = await api.fetchApi("/i18n").catch(() => null);
  words = (answer?.ok && (await answer.json())[language]?.safetyDirections) || {};
}

/** The words with `{name}` filled in. */
export function say(english, values = {}) {
  return (words[english] ?? english).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
