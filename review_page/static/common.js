// What the list and the pair share: signs of status and verdict, and small helpers.

// Each has a sign and a word, so that colour is never needed (palette of Okabe and Ito).
export const VERDICTS = {
  accept: {sign: "✔", word: "accepted", key: "a"},
  reject: {sign: "✖", word: "rejected", key: "r"},
  unsure: {sign: "?", word: "unsure", key: "u"},
};
export const STATUSES = {
  ok: {sign: "●", word: "registered"},
  manual: {sign: "✎", word: "by landmarks"},
  failed: {sign: "▲", word: "failed"},
  none: {sign: "○", word: "not registered"},
};

export function statusOf(pair) {
  if (pair.source === "manual") return "manual";
  return STATUSES[pair.status] ? pair.status : "none";
}

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("data-") || name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export function badge(kind, entry, extra = "") {
  return make("span", {class: `badge ${kind}`}, make("b", {"aria-hidden": "true"}, entry.sign), ` ${entry.word}${extra}`);
}

export function statusBadge(pair) {
  const status = statusOf(pair);
  return badge(`status-${status}`, STATUSES[status]);
}

export function confidenceText(pair) {
  if (pair.confidence === null) return "";
  return `${Math.round(100 * pair.confidence)} %`;
}

export function isTyping(event) {
  return event.target.closest("input[type=text], input[type=search], input[type=number], textarea, select") !== null;
}
