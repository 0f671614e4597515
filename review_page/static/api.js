// Requests to the server, and the verdicts that wait for it.

export async function get(name, query = {}) {
  return read(await fetch(`api/${name}?${new URLSearchParams(query)}`, {cache: "no-store"}));
}

export async function post(name, body) {
  const text = JSON.stringify(body);
  return read(await fetch(`api/${name}`, {
    method: "POST", headers: {"Content-Type": "application/json"}, body: text,
  }));
}

async function read(response) {
  const isJson = (response.headers.get("content-type") || "").startsWith("application/json");
  const content = isJson ? await response.json() : {error: await response.text()};
  if (!response.ok) throw Object.assign(new Error(content.error || response.statusText), {status: response.status});
  return content;
}

export function address(name, query) { return `api/${name}?${new URLSearchParams(query)}`; }

const banner = document.getElementById("banner");
export function warn(text) {
  banner.textContent = text;
  banner.hidden = !text;
}

// Verdicts are sent one after the other. What the server did not take stays here and is sent again.
export class VerdictQueue {
  constructor(onSaved) {
    this.waiting = [];
    this.busy = false;
    this.onSaved = onSaved;
    window.addEventListener("beforeunload", (event) => { if (this.waiting.length) event.preventDefault(); });
  }

  add(change) {
    this.waiting.push(change);
    this.send();
  }

  has(id) { return this.waiting.some((change) => change.id === id); }

  async send() {
    if (this.busy) return;
    this.busy = true;
    while (this.waiting.length) {
      try {
        const saved = await post("verdict", this.waiting[0]);
        this.waiting.shift();
        warn("");
        this.onSaved(saved.id, saved.verdict);
      } catch (error) {
        if (error.status) {
          const refused = this.waiting.shift();
          warn(`The verdict of ${refused.id} was not saved: ${error.message}`);
          this.onSaved(refused.id, null);
          break;
        }
        warn(`The server does not answer; ${this.waiting.length} verdicts are not saved yet. They are sent again until it does.`);
        setTimeout(() => this.send(), 2000);
        break;
      }
    }
    this.busy = false;
    if (this.waiting.length && banner.hidden) this.send();
  }
}
