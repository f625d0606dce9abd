"use strict";
// Charts, drawn to the width there is. Colors are CSS variables, so a change of theme needs no new drawing.
const charts = (() => {
  const { find, data } = page;
  const style = { fontSize: "12px", background: "none" };
  const drawn = [];

  const histogram = (at) => {
    const { hist, threshold } = data.probes[at];
    const bins = hist.counts.map((n, i) => ({ x1: hist.edges[i], x2: hist.edges[i + 1], n }));
    const edge = threshold === null ? Infinity : threshold;
    const parts = bins.flatMap((bin) => {
      if (bin.x2 <= edge) return [{ ...bin, hot: false }];
      if (bin.x1 >= edge) return [{ ...bin, hot: true }];
      return [{ ...bin, x2: edge, hot: false }, { ...bin, x1: edge, hot: true }];
    });
    const steps = hist.null && [...hist.null.map((n, i) => ({ x: hist.edges[i], n })), { x: hist.edges.at(-1), n: hist.null.at(-1) }];
    const height = Math.max(...hist.counts);
    const flagged = Math.max(1, ...bins.filter((bin) => bin.x2 > edge).map((bin) => bin.n));
    const root = height > 25 * flagged;
    return {
      height: 250,
      marginLeft: 48,
      marginBottom: 38,
      x: { label: "score", nice: false },
      y: { label: root ? `${page.kind.several} (square-root scale)` : page.kind.several, grid: true, type: root ? "sqrt" : "linear", tickFormat: "~s" },
      marks: [
        Plot.rectY(parts, { x1: "x1", x2: "x2", y: "n", fill: (d) => (d.hot ? "var(--hot)" : "var(--accent)"), fillOpacity: (d) => (d.hot ? 0.9 : 0.55), inset: 0.4 }),
        steps ? Plot.lineY(steps, { x: "x", y: "n", curve: "step-after", stroke: "var(--null)", strokeWidth: 1.6, strokeDasharray: "4 3" }) : null,
        Plot.ruleY([0], { stroke: "var(--soft)" }),
        threshold === null ? null : Plot.ruleX([threshold], { stroke: "var(--hot)", strokeWidth: 1.2 }),
        threshold === null ? null : Plot.text([threshold], { x: (d) => d, frameAnchor: "top", text: () => `flagged from ${threshold.toFixed(3)}`, fill: "var(--hot)", textAnchor: "start", dx: 5, dy: 2, stroke: "var(--card)", strokeWidth: 4 }),
      ],
    };
  };

  // A label's room on the left: as long as the longest, never half of a phone.
  const roomFor = (labels, width) => Math.min(24 + 7.2 * Math.max(...labels.map((one) => one.length)), 320, 0.5 * width);
  const namesAxis = (room, name) => Plot.axisY({ tickFormat: name, tickSize: 0, lineWidth: (room - 24) / 13.5, textOverflow: "ellipsis-end" });

  const sources = (width) => {
    const most = 16;
    const shown = data.sources.slice(0, most);
    const widest = Math.max(...shown.map((d) => d.share)) || 0.1; // nothing flagged: an axis of whole percents
    const labels = new Map(shown.map((d) => [d.source, d.label]));
    const room = roomFor([...labels.values()], width);
    return {
      height: 44 + 27 * shown.length,
      marginLeft: room,
      marginRight: 24,
      marginBottom: 40,
      x: { label: "share flagged", tickFormat: "~%", grid: true, domain: [0, Math.min(1.3 * widest, 1.35)], ticks: width < 500 ? 3 : 6 },
      y: { label: null, domain: shown.map((d) => d.source) },
      marks: [
        namesAxis(room, (source) => labels.get(source)),
        Plot.barX(shown, { y: "source", x: "share", fill: (d) => (d.stands_out ? "var(--hot)" : "var(--accent)"), fillOpacity: (d) => (d.stands_out ? 0.9 : 0.55), insetTop: 3, insetBottom: 3 }),
        Plot.ruleX([data.share], { stroke: "var(--ink)", strokeDasharray: "3 3" }),
        Plot.text(shown, { y: "source", x: "share", text: "text", textAnchor: "start", dx: 6, fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 4 }),
        Plot.ruleX([0], { stroke: "var(--soft)" }),
      ],
    };
  };

  const layerTicks = (found) => ({ tickFormat: "d", ticks: found.length < 18 ? found.map((one) => one.layer) : 10 });

  const layers = (at) => {
    const { layers: found, layer } = data.probes[at];
    const names = { highest: "highest", p99: "99%", p90: "90%", median: "median" };
    const lines = found.flatMap((one) => Object.entries(names).map(([key, name]) => ({ layer: one.layer, name, value: one[key] })));
    const last = lines.filter((d) => d.layer === found.at(-1).layer).sort((a, b) => a.value - b.value);
    // Names at the ends of lines that end together are moved apart.
    const values = lines.map((d) => d.value);
    const gap = 0.075 * (Math.max(...values) - Math.min(...values));
    last.forEach((d, i) => (d.at = i ? Math.max(d.value, last[i - 1].at + gap) : d.value));
    return {
      height: 240,
      marginLeft: 48,
      marginRight: 62,
      marginBottom: 38,
      x: { label: "layer", ...layerTicks(found) },
      y: { label: "score", grid: true },
      marks: [
        Plot.ruleX([layer], { stroke: "var(--accent)", strokeWidth: 8, strokeOpacity: 0.18 }),
        Plot.ruleY([0], { stroke: "var(--soft)" }),
        Plot.lineY(lines, { x: "layer", y: "value", z: "name", stroke: (d) => (d.name === "highest" ? "var(--hot)" : "var(--accent)"), strokeOpacity: (d) => (d.name === "median" ? 0.5 : 1) }),
        Plot.dot(lines, { x: "layer", y: "value", r: 2.4, fill: (d) => (d.name === "highest" ? "var(--hot)" : "var(--accent)") }),
        Plot.text(last, { x: "layer", y: "at", text: "name", textAnchor: "start", dx: 8, fill: "var(--soft)" }),
      ],
    };
  };

  const behaviors = (width) => {
    const found = data.behaviors;
    const rates = found.flatMap((one) => [
      { name: one.name, when: "before", ...one.before },
      { name: one.name, when: "after", ...one.after },
    ]);
    const color = (d) => (d.when === "after" ? "var(--hot)" : "var(--null)");
    const dy = (wanted) => (wanted === "after" ? 6 : -6);
    const marks = ["before", "after"].flatMap((when) => {
      const of = rates.filter((d) => d.when === when);
      return [
        Plot.ruleY(of, { y: "name", x1: "low", x2: "high", stroke: color, strokeWidth: 2, strokeOpacity: 0.6, dy: dy(when) }),
        Plot.dot(of, { y: "name", x: "share", stroke: color, fill: when === "after" ? "var(--hot)" : "var(--paper)", strokeWidth: 2, r: 5, dy: dy(when) }),
      ];
    });
    const labels = new Map(found.map((d) => [d.name, d.label]));
    const room = roomFor([...labels.values()], width);
    return {
      height: 50 + 44 * found.length,
      marginLeft: room,
      marginBottom: 40,
      x: { label: "responses that show it", tickFormat: "~%", domain: [0, 1], grid: true, ticks: 6 },
      y: { label: null, type: "point", domain: found.map((d) => d.name), padding: 0.6 },
      marks: [namesAxis(room, (name) => labels.get(name)), ...marks],
    };
  };

  const effects = (width) => {
    const found = data.effects;
    const color = (d) => (d.harmful ? "var(--hot)" : "var(--accent)");
    const names = new Map(found.map((d) => [d.number, `${d.number}  ${d.label}`]));
    const room = roomFor([...names.values()], width);
    return {
      height: 44 + 24 * found.length,
      marginLeft: room,
      marginRight: 24,
      marginBottom: 40,
      x: { label: "d", grid: true, zero: true, ticks: width < 500 ? 4 : 8 },
      y: { label: null, type: "point", domain: found.map((d) => d.number), padding: 0.6 },
      marks: [
        namesAxis(room, (number) => names.get(number)),
        Plot.ruleX([0], { stroke: "var(--soft)" }),
        Plot.ruleY(found, { y: "number", x1: "low", x2: "high", stroke: color, strokeWidth: 2, strokeOpacity: 0.6 }),
        Plot.dot(found, { y: "number", x: "size", fill: color, r: 5 }),
      ],
    };
  };

  const drift = () => ({
    height: 230,
    marginLeft: 52,
    marginBottom: 38,
    x: { label: "layer", type: "linear", ...layerTicks(data.drift) },
    y: { label: "moved", grid: true, tickFormat: "~%", zero: true },
    marks: [
      Plot.areaY(data.drift, { x: "layer", y: "norm", fill: "var(--accent)", fillOpacity: 0.12 }),
      Plot.lineY(data.drift, { x: "layer", y: "norm", stroke: "var(--accent)", strokeWidth: 1.8 }),
      Plot.dot(data.drift, { x: "layer", y: "norm", r: 2.6, fill: "var(--accent)" }),
      Plot.ruleY([0], { stroke: "var(--soft)" }),
    ],
  });

  const put = (place, options) => {
    const width = Math.floor(place.clientWidth);
    if (width < 80 || Number(place.dataset.width) === width) return;
    place.dataset.width = width;
    draw(place, options(width), width);
  };

  const draw = (place, options, width) => {
    const made = options instanceof Node ? options : Plot.plot({ style, width, ...options });
    place.replaceChildren(made);
    // The figure has one label as a whole; Plot's, on groups without a role, may not stand there.
    for (const group of place.querySelectorAll("g[aria-label]")) group.removeAttribute("aria-label");
  };

  // `options(width)` gives Plot's options, or an element. What it gives is drawn when the place gets its width.
  const add = (place, options) => place && drawn.push([place, options]);
  const again = (place) => {
    const found = drawn.find(([one]) => one === place);
    delete place.dataset.width;
    put(...found);
  };

  const start = () => {
    if (data.sources?.length > 1) add(find("chart-sources"), sources);
    document.querySelectorAll("[data-hist]").forEach((place) => add(place, () => histogram(Number(place.dataset.hist))));
    document.querySelectorAll("[data-layers]").forEach((place) => add(place, () => layers(Number(place.dataset.layers))));
    if (data.behaviors.length) add(find("chart-behaviors"), behaviors);
    if (data.effects.length) add(find("chart-effects"), effects);
    if (data.drift.length) add(find("chart-drift"), drift);
    const watcher = new ResizeObserver(() => drawn.forEach(([place, options]) => put(place, options)));
    drawn.forEach(([place]) => watcher.observe(place));
  };

  return { start, add, again };
})();
