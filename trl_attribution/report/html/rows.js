"use strict";
// The listed pairs as columns: 100,000 of them are a few typed arrays, and texts are parsed when they are looked at.
const rows = (() => {
  if (!page.data.rows) return null;
  const { rows: packed, texts } = page.data;
  const ids = page.bytes(packed.ids);
  const length = packed.length;
  const row = page.integers(packed.row);
  const source = page.integers(packed.source);
  const probe = page.integers(packed.probe);
  const rank = page.integers(packed.rank);
  const score = page.floats(packed.score);
  const q = page.floats(packed.q);
  const hex = Array.from({ length: 256 }, (_, value) => value.toString(16).padStart(2, "0"));

  const id = (i) => {
    let found = "";
    for (let k = 16 * i; k < 16 * i + 16; k++) found += hex[ids[k]];
    return found;
  };

  const chunks = new Map();
  const chunk = (number) => {
    if (!chunks.has(number)) chunks.set(number, JSON.parse(page.find(`texts-${number}`).textContent));
    return chunks.get(number);
  };
  const text = (i) => (i < texts.count ? chunk(Math.floor(i / texts.chunk))[i % texts.chunk] : null);

  const plain = new Array(texts.count);
  const searchable = (i) => {
    if (plain[i] === undefined) {
      const found = text(i);
      const parts = found === null ? [] : [found.where, ...[found.p, found.c, found.r].flat().map((part) => part[1])];
      plain[i] = parts.join("\n").toLowerCase();
    }
    return plain[i];
  };
  // Made while nothing else is to be done, so that the first search is as quick as the next.
  const prepare = (deadline) => {
    let i = prepare.next;
    while (i < texts.count && deadline.timeRemaining() > 2) searchable(i++);
    prepare.next = i;
    if (i < texts.count) whenIdle(prepare);
  };
  prepare.next = 0;
  const whenIdle = (task) =>
    typeof requestIdleCallback === "function"
      ? requestIdleCallback(task)
      : setTimeout(() => {
          const end = performance.now() + 8;
          task({ timeRemaining: () => end - performance.now() });
        }, 20);

  const places = () => Uint32Array.from({ length }, (_, i) => i);
  const first = new Set(packed.first);
  const orders = {
    rank: () => places(),
    first: () => Uint32Array.from([...packed.first, ...places().filter((i) => !first.has(i))]),
    score: () => places().sort((a, b) => score[a] - score[b]),
    row: () => places().sort((a, b) => row[a] - row[b]),
    source: () => {
      const names = packed.sourceNames.map((name, i) => [name, i]).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
      const place = new Uint32Array(names.length);
      names.forEach(([, i], at) => (place[i] = at));
      return places().sort((a, b) => place[source[a]] - place[source[b]] || a - b);
    },
    // An id is a digest: its order has nothing to do with content, and is the same for everybody.
    random: () => {
      const key = new DataView(ids.buffer);
      return places().sort((a, b) => key.getUint32(16 * a) - key.getUint32(16 * b) || a - b);
    },
  };
  const made = new Map();
  const order = (name) => {
    if (!made.has(name)) made.set(name, orders[name]());
    return made.get(name);
  };

  // Where a pair is listed, -1 where it is not; by search in the order of ids.
  const indexOf = (wanted) => {
    const sorted = order("random");
    const key = new DataView(ids.buffer);
    const head = Number.parseInt(wanted.slice(0, 8), 16);
    let [low, high] = [0, length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (key.getUint32(16 * sorted[middle]) < head) low = middle + 1;
      else high = middle;
    }
    for (; low < length && key.getUint32(16 * sorted[low]) === head; low++) {
      if (id(sorted[low]) === wanted) return sorted[low];
    }
    return -1;
  };

  const matcher = (query) => {
    const wanted = query.trim().toLowerCase();
    if (!wanted) return null;
    const numbered = /^row:(\d+)$/.exec(wanted);
    if (numbered) return (i) => row[i] === Number(numbered[1]);
    const sources = packed.sourceNames.map((name) => name.toLowerCase().includes(wanted));
    const isId = /^[0-9a-f]{8,32}$/.test(wanted);
    return (i) => sources[source[i]] || (i < texts.count && searchable(i).includes(wanted)) || (isId && id(i).startsWith(wanted));
  };

  return {
    length,
    flagged: packed.flagged,
    first,
    id,
    indexOf,
    row,
    source,
    probe,
    rank,
    score,
    q,
    text,
    order,
    matcher,
    sourceName: (i) => packed.sourceNames[source[i]],
    probeName: (i) => page.data.probes[probe[i]].name,
    decided: (i) => page.data.probes[probe[i]].decided,
    columns: packed.columns.map((column) => ({ ...column, score: page.floats(column.score) })),
    prepare: () => whenIdle(prepare),
    prepared: () => prepare.next >= texts.count,
  };
})();
