"use strict";
// What discovery found: the heatmap with its tree, the map of pairs, and the way from a cluster to a probe.
const discovery = (() => {
  const { data, make, bytes, floats, integers } = page;
  const found = data.discoveries;
  const colors = 8;
  const color = (at) => (at >= 0 && at < colors ? `var(--c${at})` : "var(--c-other)");
  const svg = (tag, options) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(options)) made.setAttribute(name, value);
    return made;
  };

  const legend = (name, entries) => {
    const place = document.querySelector(`[data-legend="${name}"]`);
    place.replaceChildren(...entries.map(([label, kind]) => make("span", { class: `key data key-${kind}` }, label)));
  };
  // Labels of the first few, and one for all others.
  const entriesOf = (labels, used, none) => [
    ...labels.slice(0, colors).map((label, at) => [label, `c${at}`]),
    ...(used.some((at) => at >= colors || at < 0) ? [[none, "other"]] : []),
  ];

  const pixels = ({ size, cosine }) => {
    const values = new Int8Array(bytes(cosine).buffer);
    const theme = getComputedStyle(document.documentElement);
    const of = (name) => d3.rgb(theme.getPropertyValue(name).trim());
    const scale = d3.scaleDiverging([-127, 0, 127], d3.piecewise(d3.interpolateRgb, [of("--accent"), of("--card"), of("--hot")]));
    const known = Array.from({ length: 256 }, (_, at) => d3.rgb(scale(at - 128)));
    const canvas = make("canvas", { width: size, height: size });
    const context = canvas.getContext("2d");
    const image = context.createImageData(size, size);
    values.forEach((value, at) => {
      const { r, g, b } = known[value + 128];
      image.data.set([r, g, b, 255], 4 * at);
    });
    context.putImageData(image, 0, 0);
    return canvas;
  };

  const heatmap = (one) => (width) => {
    const { size, cluster } = one.heatmap;
    const [places, heights] = [floats(one.heatmap.places), floats(one.heatmap.heights)];
    const tree = Math.min(120, 0.2 * width);
    const strip = 14;
    const side = width - tree - strip;
    const highest = heights.reduce((a, b) => Math.max(a, b), 0) || 1;
    const [x, y] = [(height) => (tree - 2) * (1 - height / highest), (place) => (side * place) / size];
    let path = "";
    for (let at = 0; at < places.length; at += 4) {
      for (let k = 0; k < 4; k++) path += `${k ? "L" : "M"}${x(heights[at + k]).toFixed(1)},${y(places[at + k]).toFixed(1)}`;
    }
    const drawing = svg("svg", { width: tree + strip, height: side, viewBox: `0 0 ${tree + strip} ${side}` });
    drawing.append(svg("path", { d: path, fill: "none", stroke: "var(--soft)", "stroke-width": 0.8 }));
    cluster.forEach((at, row) => {
      if (at < 0) return;
      drawing.append(svg("rect", { x: tree, y: y(row), width: strip - 4, height: side / size + 0.3, fill: color(at) }));
    });
    const canvas = pixels(one.heatmap);
    canvas.style.width = canvas.style.height = `${side}px`;
    return make("div", { class: "heat-parts" }, drawing, canvas);
  };

  const decoded = (one) => {
    const { x, y, row } = one.map;
    return { ...one.map, x: floats(x), y: floats(y), row: integers(row) };
  };

  const map = (points, choice) => (width) => {
    const by = choice.value;
    const at = by === "flagged" ? points.flagged.map((flag) => (flag ? 3 : -1)) : points[by];
    // Gray ones first, so that they do not hide the others.
    const order = d3.range(at.length).sort((a, b) => (at[a] >= 0) - (at[b] >= 0) || a - b);
    points.order = order;
    const title = (i) =>
      [
        `row ${page.count(points.row[i])} of ${points.names[points.name[i]]}`,
        points.flagged[i] ? "flagged" : null,
        points.cluster[i] >= 0 ? `pushes towards ${points.clusters[points.cluster[i]]}` : null,
      ]
        .filter(Boolean)
        .join(", ");
    const shared = { x: (i) => points.x[i], y: (i) => points.y[i] };
    return {
      height: Math.min(width, 520),
      margin: 8,
      x: { axis: null },
      y: { axis: null },
      marks: [
        Plot.dot(order, { ...shared, r: 2.6, fill: (i) => color(at[i]), fillOpacity: (i) => (at[i] < 0 ? 0.55 : 0.9), title }),
        Plot.dot(order.filter((i) => points.flagged[i]), { ...shared, r: 5, stroke: "var(--ink)", strokeWidth: 0.8, fill: "none", pointerEvents: "none" }),
      ],
    };
  };

  const startMap = (place, one, number) => {
    const points = { ...decoded(one), clusters: one.clusters };
    const choice = document.querySelector(`[data-color="${number}"]`);
    const tell = () => {
      const entries = {
        source: () => entriesOf(points.sources, points.source, "other sources"),
        flagged: () => [["flagged", "c3"], ["not flagged", "other"]],
        cluster: () => entriesOf(points.clusters, points.cluster, "none, or one of the others"),
      };
      legend(`map-${number}`, entries[choice.value]());
    };
    charts.add(place, map(points, choice));
    choice.addEventListener("change", () => {
      tell();
      charts.again(place);
    });
    place.addEventListener("click", (event) => {
      // Plot binds each dot to its place among what it was given.
      const listed = points.listed[points.order[event.target.closest("circle")?.__data__]];
      if (listed >= 0) browser.open(listed);
    });
    tell();
  };

  // Selected as well: where a browser keeps pages from the clipboard, a key copies it.
  const copy = async (button) => {
    const command = page.find(button.dataset.copy);
    const told = button.nextElementSibling;
    getSelection().selectAllChildren(command);
    try {
      await navigator.clipboard.writeText(command.textContent);
      told.textContent = "Copied.";
    } catch {
      told.textContent = "Selected: copy it with Ctrl-C or Command-C.";
    }
  };

  const register = async (form) => {
    const [view, cluster] = form.dataset.register.split("-").map(Number);
    const [button, told] = [form.querySelector("button"), form.querySelector("[role=status]")];
    button.disabled = true;
    told.textContent = "Registering …";
    try {
      const answer = await fetch("probes", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ discovery: view, cluster, name: form.elements.name.value.trim() }),
      });
      if (!answer.ok) throw new Error(await answer.text());
      const { saved, already } = await answer.json();
      told.textContent = already ? `It was registered before: ${saved}` : `Registered: ${saved}. Audits take it with --probes.`;
    } catch (error) {
      told.textContent = `Not registered: ${error.message}`;
    }
    button.disabled = false;
  };

  const start = () => {
    found.forEach((one, number) => {
      const heat = document.querySelector(`[data-heatmap="${number}"]`);
      if (heat) {
        charts.add(heat, heatmap(one));
        page.onTheme(() => charts.again(heat));
        legend(`heatmap-${number}`, entriesOf(one.clusters, one.heatmap.cluster.filter((at) => at >= 0), "other clusters"));
      }
      const place = document.querySelector(`[data-map="${number}"]`);
      if (place) startMap(place, one, number);
    });
    for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
    for (const form of document.querySelectorAll("[data-register]")) {
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        register(form);
      });
    }
  };

  return { start };
})();
