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
  // What is passing goes with the next step; trouble stays until it is over.
  let passing = false;
  const tell = (message, passes = false) => {
    trouble = message;
    passing = passes;
    page.find("message").textContent = message;
    page.find("message").classList.toggle("passing", passes);
  };
  const note = (message) => {
    if (!trouble || passing) tell(message, true);
  };
  // What the decisions come to, reckoned by the server.
  const say = (told) => (page.find("reviewed").textContent = told.join(" "));
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
    async save(changes) {
      let kept = 0;
      try {
        for (const [id, value] of changes) {
          if (value === null) localStorage.removeItem(prefix + id);
          else localStorage.setItem(prefix + id, JSON.stringify(value));
          kept += 1;
        }
      } catch {
        const part = changes.length > 1 ? ` (${page.count(changes.length - kept)} of ${page.count(changes.length)} are on this page only)` : "";
        tell(`The browser's storage is full or blocked${part}: export your decisions before you close this page, or use trl-attribution review.`);
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
        say(found.told);
        known.clear();
        listed.clear();
        for (const { pair_id: id, ...value } of found.decisions) keep(id, value);
        if (trouble.startsWith("The review server")) tell("");
        changed();
      } catch (error) {
        tell(`The review server does not answer (${error.message}). Is \`trl-attribution review\` still running?`);
      }
    },
    save(changes) {
      // One after the other, so that the last click is what stays.
      this.pending += 1;
      this.queue = this.queue.then(() => this.send(changes)).finally(() => (this.pending -= 1));
      return this.queue;
    },
    async send(changes) {
      // Pairs that get the same decision are sent together.
      const groups = new Map();
      for (const [id, value] of changes) {
        const key = JSON.stringify(value);
        if (!groups.has(key)) groups.set(key, { pair_ids: [], decision: value && { ...value, reviewer: undefined } });
        groups.get(key).pair_ids.push(id);
      }
      try {
        const answer = await fetch("decisions", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ changes: [...groups.values()] }),
        });
        if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
        const { before, revision, told } = await answer.json();
        say(told);
        // Nobody else decided meanwhile: there is nothing to ask for.
        if (before === this.revision) this.revision = revision;
        if (trouble.startsWith("Not saved")) tell("");
      } catch (error) {
        const what = changes.length > 1 ? `These ${page.count(changes.length)} decisions are` : "The decision is";
        tell(`Not saved: ${error.message}. ${what} on this page only; export before you close it.`);
      }
    },
  };

  const keeper = review.mode === "server" ? server : browser;

  // What was there before, so that one step back undoes all of it.
  const put = (changes) => {
    const before = changes.map(([id]) => [id, known.get(id) ?? null]);
    for (const [id, value] of changes) keep(id, value);
    changed();
    keeper.save(changes);
    return before;
  };
  const step = (changes) => {
    if (passing) tell("");
    if (changes.length) undoable.push(put(changes));
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
      if (!/^[0-9a-f]{32}$/.test(id) || !page.kind.actions.includes(action)) throw new Error("a line is broken");
    }
    // A server takes decisions about the audit's own pairs only.
    const taken = lines.filter(({ pair_id: id }) => keeper === browser || rows.indexOf(id) >= 0);
    step(
      taken.map(({ pair_id: id, action, note = "", reviewer: who = "", decided_at: at = "" }) => [
        id,
        { action, note: String(note), reviewer: String(who), decided_at: String(at) },
      ]),
    );
    return { taken: taken.length, left: lines.length - taken.length };
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
    decide(places, action, note) {
      const value = action === null ? null : record(action, note);
      step(places.map((place) => [rows.id(place), value]));
    },
    // The place of the first pair that it changed, and how many it changed.
    undo() {
      const last = undoable.pop();
      if (!last) return { place: -1, changed: 0 };
      if (passing) tell("");
      put(last);
      return { place: rows.indexOf(last[0][0]), changed: last.length };
    },
    exported,
    imported,
    tell,
    note,
    onChange: (listener) => listeners.push(listener),
    async load() {
      await keeper.load();
      changed();
    },
    served: review.mode === "server",
  };
})();
