// Charts: Observable Plot over the page's data, drawn again when their width changes. Colours are CSS variables.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  window.latentwire = {data};
  const COLOURS = ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)"];
  const DASHES = ["none", "6 3", "2 3", "9 3 2 3"];
  const style = {background: "none", fontFamily: "inherit", fontSize: "12px", overflow: "visible"};
  const colourOf = (at) => COLOURS[at % COLOURS.length];
  const dashOf = (at) => DASHES[Math.floor(at / COLOURS.length) % DASHES.length];

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function panel(title, note, drawn, width) {
    const made = element("figure", "panel");
    made.style.width = `${width}px`;
    const caption = element("figcaption", "", title);
    if (note) caption.append(element("small", "", note));
    made.append(caption, drawn);
    return made;
  }

  function legend(names, dashes) {
    const made = element("p", "legend");
    names.forEach((name, at) => {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      line.setAttribute("viewBox", "0 0 26 10");
      line.setAttribute("class", "swatch");
      const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
      Object.entries({x1: 0, x2: 26, y1: 5, y2: 5, stroke: colourOf(at), "stroke-width": 3, "stroke-dasharray": dashes ? dashOf(at) : "none"})
        .forEach(([key, value]) => stroke.setAttribute(key, value));
      line.append(stroke);
      const item = element("span", "", "");
      item.append(line, document.createTextNode(name));
      made.append(item);
    });
    return made;
  }

  // How many panels fit side by side, and how wide each is.
  function grid(width, least, count) {
    const across = Math.max(1, Math.min(count, Math.floor((width + 24) / (least + 24))));
    return Math.floor((width - 24 * (across - 1)) / across);
  }

  function longest(names) {
    return Math.min(190, 16 + 6.4 * Math.max(...names.map((name) => name.length)));
  }

  // About how many labels fit under an axis; Plot may take up to twice as many.
  const labels = (width) => Math.max(2, Math.min(5, Math.floor(width / 42)));

  const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  function scores(study, width) {
    const {tasks, readings, floors} = study.scores;
    const seeing = readings.filter((each) => !each.blind);
    const rows = seeing.length ? seeing : readings;
    const names = [...new Set(rows.map((each) => each.reading))];
    const order = tasks.includes("macro") ? ["macro", ...tasks.filter((task) => task !== "macro")] : tasks;
    const each = grid(width, 330, order.length);
    const made = element("div", "panels");
    const top = Math.max(1, ...rows.map((row) => row.value));
    for (const task of order) {
      const own = rows.filter((row) => row.task === task);
      const lines = [
        ...floors.filter((floor) => floor.task === task),
        ...readings.filter((row) => row.blind && row.task === task).slice(0, 1).map((row) => ({floor: "none", value: row.value})),
      ];
      const highest = lines.length ? [lines.reduce((a, b) => (b.value > a.value ? b : a))] : [];
      const drawn = Plot.plot({
        width: each, height: 42 + 24 * names.length, marginLeft: longest(names), marginTop: 8, marginBottom: 30, style,
        x: {domain: [0, top], label: null, ticks: labels(each - longest(names) - 20), grid: true},
        y: {domain: names, label: null, tickSize: 0, tickFormat: (name) => short(name, 28)},
        marks: [
          Plot.ruleX(highest, {x: "value", stroke: "var(--muted)", strokeDasharray: "3 3"}),
          Plot.link(own, {x1: (row) => row.low ?? 0, x2: (row) => row.high ?? top, y1: "reading", y2: "reading", stroke: "var(--c0)", strokeWidth: 2.5, strokeOpacity: 0.45}),
          Plot.dot(own, {x: "value", y: "reading", r: 4.5, fill: (row) => (row.leaks ? "var(--page)" : "var(--c0)"), stroke: "var(--c0)", strokeWidth: 1.5,
            channels: {interval: {value: (row) => `${number(row.low)} to ${number(row.high)}`, label: "95 %"}}, tip: {format: {fill: false, stroke: false, x: (value) => number(value)}}}),
        ],
      });
      const floor = highest.length ? `dashed: ${highest[0].floor.replace("_", " ")} ${number(highest[0].value)}` : "";
      made.append(panel(task, floor, drawn, each));
    }
    return [made];
  }

  function number(value) {
    return value === null || value === undefined ? "∞" : value.toFixed(3).replace("-", "−");
  }

  function bars(study, width) {
    const made = element("div", "panels");
    const groups = [...new Set(study.bars.map((row) => row.effect))];
    const tasks = [...new Set(study.bars.map((row) => row.task))];
    const task = tasks.includes("macro") ? "macro" : null;
    const panels = groups.flatMap((effect) => (task ? [task, ...tasks.filter((each) => each !== task)] : tasks).map((each) => [effect, each]))
      .filter(([effect, each]) => study.bars.some((row) => row.effect === effect && row.task === each && row.above_floor.value !== null));
    const names = [...new Set(study.bars.map((row) => row.of))];
    const each = grid(width, 330, panels.length);
    for (const [effect, of] of panels) {
      const own = study.bars.filter((row) => row.effect === effect && row.task === of && row.above_floor.value !== null);
      const some = names.filter((name) => own.some((row) => row.of === name));
      const clamp = (value, end) => Math.max(-0.5, Math.min(1.5, value ?? end));
      const values = own.flatMap((row) => [clamp(row.above_floor.low, -0.5), clamp(row.above_floor.high, 1.5), row.above_floor.value]);
      const domain = [Math.min(0, ...values), Math.max(1, ...values)];
      const drawn = Plot.plot({
        width: each, height: 46 + 30 * some.length, marginLeft: longest(some), marginTop: 8, marginBottom: 30, style,
        x: {domain, label: null, ticks: labels(each - longest(some) - 20), grid: true, clamp: true},
        y: {domain: some, label: null, tickSize: 0, padding: 0.35, tickFormat: (name) => short(name, 28)},
        marks: [
          Plot.barX(own, {x1: 0, x2: (row) => row.above_floor.value, y: "of", rx: 2,
            fill: (row) => (row.at_floor ? "var(--soft)" : "var(--c0)"), fillOpacity: (row) => (row.at_floor ? 1 : 0.55),
            stroke: (row) => (row.at_floor ? "var(--muted)" : "none"),
            channels: {interval: {value: (row) => `${number(row.above_floor.low)} to ${number(row.above_floor.high)}`, label: "95 %"},
              raw: {value: (row) => number(row.raw.value), label: "raw"}, floor: {value: (row) => `${number(row.floor)} (${row.floor_is})`, label: "floor"}},
            tip: {format: {fill: false, fillOpacity: false, stroke: false, x1: false, x2: (value) => number(value)}}}),
          Plot.link(own, {x1: (row) => clamp(row.above_floor.low, domain[0]), x2: (row) => clamp(row.above_floor.high, domain[1]), y1: "of", y2: "of", stroke: "currentColor", strokeWidth: 1.5}),
          Plot.ruleX([0, 1], {stroke: "var(--muted)", strokeDasharray: "3 3"}),
          // A bar of no length cannot be seen: a dot says where it ends.
          Plot.dot(own, {x: (row) => row.above_floor.value, y: "of", r: 3.5, fill: (row) => (row.at_floor ? "var(--page)" : "var(--c0)"), stroke: (row) => (row.at_floor ? "var(--muted)" : "var(--c0)"), strokeWidth: 1.5}),
        ],
      });
      const one = effect === "gap closed" ? "the text" : "the baseline";
      made.append(panel(`${effect}, ${of}`, `0 is the floor, 1 ${effect === "recovery" ? "all of the damage" : one}`, drawn, each));
    }
    return [made];
  }

  const PANELS = {loss: "Loss, nats a token", objectives: "Objectives", gradient: "Gradient norm", accuracy: "Share of right first tokens and answers"};

  function trainings(study, width) {
    const stages = study.trainings.map((each) => each.stage);
    const kinds = Object.keys(PANELS).filter((kind) => study.trainings.some((each) => each.curves.some((curve) => curve.panel === kind)));
    const each = grid(width, 420, kinds.length);
    const made = element("div", "panels");
    for (const kind of kinds) {
      const marks = [];
      const notes = new Set();
      study.trainings.forEach((training, at) => {
        const own = training.curves.filter((curve) => curve.panel === kind);
        const main = own.filter((curve) => !["training", "first token, training"].includes(curve.name));
        for (const curve of own) {
          const points = curve.points.map(([step, value]) => ({step, value, name: `${training.stage}: ${curve.name}`}));
          const faint = own.length > main.length && !main.includes(curve) && main.length > 0;
          if (faint) notes.add("thin: on training rows");
          marks.push(Plot.line(points, {x: "step", y: "value", stroke: colourOf(at), strokeWidth: faint ? 1 : 2, strokeOpacity: faint ? 0.5 : 1, strokeDasharray: dashOf(main.indexOf(curve) > 0 ? at + COLOURS.length * main.indexOf(curve) : at)}));
          if (main.length > 1 && !faint) marks.push(Plot.text(points.slice(-1), {x: "step", y: "value", text: () => curve.name, dx: -4, dy: -8, textAnchor: "end", fill: colourOf(at), stroke: "var(--page)", strokeWidth: 3, paintOrder: "stroke"}));
          if (faint && points.length === 1) marks.push(Plot.dot(points, {x: "step", y: "value", r: 2.5, fill: colourOf(at), fillOpacity: 0.5}));
          if (!faint) marks.push(Plot.dot(points, {x: "step", y: "value", r: points.length > 60 ? 0 : 2.5, fill: colourOf(at), title: (d) => `${d.name}\nstep ${d.step}: ${d.value}`, tip: points.length <= 60}));
        }
        if (kind === "loss") {
          for (const best of training.best.filter((one) => one.metric === "loss")) {
            notes.add("ring: best checkpoint");
            marks.push(Plot.dot([best], {x: "step", y: "value", r: 7, stroke: colourOf(at), strokeWidth: 2, fill: "none"}));
          }
        }
        if (training.steps) {
          if (kind === "loss") notes.add("dotted: where it ended");
          marks.push(Plot.ruleX([training.steps], {stroke: colourOf(at), strokeDasharray: "1 4"}));
        }
      });
      const accuracy = kind === "accuracy";
      const drawn = Plot.plot({width: each, height: 240, marginLeft: 48, marginBottom: 34, style,
        x: {label: "step", grid: false}, y: {label: null, grid: true, zero: true, domain: accuracy ? [0, 1] : undefined, nice: !accuracy}, marks});
      made.append(panel(PANELS[kind], [...notes].join("; "), drawn, each));
    }
    return [legend(stages, true), made];
  }

  function sizes(study, width) {
    const tasks = [...new Set(study.sizes.map((row) => row.task))];
    const series = [...new Set(study.sizes.map((row) => row.series))].filter((name) => name !== "none");
    const each = grid(width, 330, tasks.length);
    const made = element("div", "panels");
    for (const task of tasks) {
      const own = study.sizes.filter((row) => row.task === task && row.bytes > 0);
      const none = study.sizes.filter((row) => row.task === task && row.series === "none").slice(0, 1);
      const marks = [Plot.ruleX([]), Plot.ruleY(none, {y: "value", stroke: "var(--muted)", strokeDasharray: "3 3"})];
      series.forEach((name, at) => {
        const points = own.filter((row) => row.series === name).sort((a, b) => a.bytes - b.bytes);
        marks.push(
          Plot.line(points, {x: "bytes", y: "value", stroke: colourOf(at), strokeDasharray: dashOf(at)}),
          Plot.link(points, {x1: "bytes", x2: "bytes", y1: (row) => row.low ?? 0, y2: (row) => row.high ?? 1, stroke: colourOf(at), strokeOpacity: 0.5}),
          Plot.dot(points, {x: "bytes", y: "value", r: 4, fill: colourOf(at), title: (row) => `${row.arm}\n${Math.round(row.bytes)} bytes: ${number(row.value)}`, tip: true}),
        );
      });
      const drawn = Plot.plot({width: each, height: 230, marginLeft: 44, marginBottom: 38, style,
        x: {type: "log", label: "bytes a context", ticks: 4, tickFormat: "~s", inset: 12}, y: {domain: [0, 1], label: null, grid: true}, marks});
      made.append(panel(task, none.length ? `dashed: none ${number(none[0].value)}` : "", drawn, each));
    }
    return [legend(series, true), made];
  }

  const KINDS = {scores, bars, trainings, sizes};

  function draw(place, width = place.clientWidth) {
    if (width < 40) return;
    place.replaceChildren(...KINDS[place.dataset.chart](data.studies[+place.dataset.study], width));
    // The figure has one description for all; the drawings inside are not read out one by one.
    place.querySelectorAll("svg").forEach((svg) => svg.setAttribute("aria-hidden", "true"));
    place.dataset.width = width;
  }

  const places = [...document.querySelectorAll(".chart")];
  const watching = new ResizeObserver((entries) => {
    for (const {target} of entries) {
      if (Math.abs(target.clientWidth - (+target.dataset.width || 0)) > 8) requestAnimationFrame(() => draw(target));
    }
  });
  places.forEach((place) => { draw(place); watching.observe(place); });
  addEventListener("beforeprint", () => places.forEach((place) => draw(place, 680)));
  addEventListener("afterprint", () => places.forEach((place) => draw(place)));
})();
