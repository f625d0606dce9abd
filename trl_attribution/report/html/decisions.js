"use strict";
// What the reviewer decided: kept by the browser, or by the review server where one opened the page.
const decisions = (() => {
  if (!rows) return null;
  const { fingerprint, review } = page.data;
  const prefix = `trl-attribution/1/decisions/${fingerprint}/`;
  // All decisions by id, and those about listed pairs by their place.
  const known = new Map();
  const listed = new Map();
  const undoable = [];
  const listeners = [];
  let reviewer = review.reviewer ?? page.stored.get("reviewer", "");
  let trouble = "";

  const keep = (id, value) => {
    const place = rows.indexOf(id);
    if (value === null) {
      known.delete(id);
      listed.delete(place);
    } else {
      known.set(id, value);
      if (place >= 0) listed.set(place, value);
    }
  };
  const changed = () => listeners.forEach((listener) => listener());
  const tell = (message) => {
    trouble = message;
    page.find("message").textContent = message;
  };
  const record = (action, note) => ({
    action,
    note,
    reviewer,
    decided_at: new Date().toISOString().replace(/\.\d+Z$/, "Z"),
  });

  const browser = {
    async load() {
      try {
        for (let i = 0; i < localStorage.length; i++) this.take(localStorage.key(i));
      } catch {
        tell("This browser keeps nothing for this page: export your decisions before you close it.");
      }
      // Each decision has a key of its own, so tabs cannot overwrite each other's.
      addEventListener("storage", (event) => {
        if (event.key && this.take(event.key)) changed();
      });
    },
    take(key) {
      if (!key.startsWith(prefix)) return false;
      const id = key.slice(prefix.length);
      const value = localStorage.getItem(key);
      keep(id, value === null ? null : JSON.parse(value));
      return true;
    },
    async save(id, value) {
      try {
        if (value === null) localStorage.removeItem(prefix + id);
        else localStorage.setItem(prefix + id, JSON.stringify(value));
      } catch {
        tell("The browser's storage is full or blocked: export your decisions before you close this page.");
      }
    },
  };

  const server = {
    revision: -1,
    pending: 0,
    queue: Promise.resolve(),
    async load() {
      await this.refresh();
      setInterval(() => {
        if (document.visibilityState === "visible" && this.pending === 0) this.refresh();
      }, 2000);
    },
    async refresh() {
      try {
        const answer = await fetch(`decisions?since=${this.revision}`);
        if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
        const found = await answer.json();
        if (this.pending > 0 || found.decisions === null) return;
        this.revision = found.revision;
        known.clear();
        listed.clear();
        for (const { pair_id: id, ...value } of found.decisions) keep(id, value);
        if (trouble.startsWith("The review server")) tell("");
        changed();
      } catch (error) {
        tell(`The review server does not answer (${error.message}). Is \`trl-attribution review\` still running?`);
      }
    },
    save(id, value) {
      // One after the other, so that the last click is what stays.
      this.pending += 1;
      this.queue = this.queue.then(() => this.send(id, value)).finally(() => (this.pending -= 1));
      return this.queue;
    },
    async send(id, value) {
      try {
        const answer = await fetch("decisions", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ pair_id: id, decision: value && { ...value, reviewer: undefined } }),
        });
        if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
        if (trouble.startsWith("Not saved")) tell("");
      } catch (error) {
        tell(`Not saved: ${error.message}. The decision is on this page only; export it.`);
      }
    },
  };

  const keeper = review.mode === "server" ? server : browser;

  const put = (id, value) => {
    keep(id, value);
    changed();
    return keeper.save(id, value);
  };

  const line = (values) => `${JSON.stringify(values)}\n`;
  const exported = () => {
    const header = { format: "trl-attribution decisions", version: 1, dataset_fingerprint: fingerprint };
    const lines = [...known].map(([id, value]) => line({ pair_id: id, ...value }));
    return [line(header), ...lines].join("");
  };
  const imported = (text) => {
    const [header, ...lines] = text.split("\n").filter((each) => each.trim()).map((each) => JSON.parse(each));
    if (header?.format !== "trl-attribution decisions") throw new Error("this is no decisions file");
    if (!(header.version <= 1)) throw new Error(`its version is ${header.version}; this page reads up to 1`);
    if (header.dataset_fingerprint !== fingerprint) throw new Error("it is about another dataset");
    for (const { pair_id: id, action } of lines) {
      if (!/^[0-9a-f]{32}$/.test(id) || !["keep", "filter", "flip"].includes(action)) throw new Error("a line is broken");
    }
    for (const { pair_id: id, action, note = "", reviewer: who = "", decided_at: at = "" } of lines) {
      put(id, { action, note: String(note), reviewer: String(who), decided_at: String(at) });
    }
    return lines.length;
  };

  return {
    at: (place) => listed.get(place),
    listed: () => [...listed],
    get size() {
      return known.size;
    },
    get reviewer() {
      return reviewer;
    },
    set reviewer(name) {
      reviewer = name;
      page.stored.set("reviewer", name);
    },
    decide(place, action, note) {
      const id = rows.id(place);
      undoable.push({ place, id, before: listed.get(place) ?? null });
      return put(id, action === null ? null : record(action, note));
    },
    undo() {
      const last = undoable.pop();
      if (!last) return -1;
      put(last.id, last.before);
      return last.place;
    },
    exported,
    imported,
    tell,
    onChange: (listener) => listeners.push(listener),
    async load() {
      await keeper.load();
      changed();
    },
    served: review.mode === "server",
  };
})();
