// The sample browser: filters, a list, and the chosen example under every reading. The address follows what is chosen.
(() => {
  "use strict";
  const {data, drawing, marked, element} = window.latentwire;
  const {tasks, examples, readings, texts, shapes} = data.samples;
  const get = (id) => document.getElementById(id);
  const narrow = matchMedia("(max-width: 760px)");
  const PAGE = narrow.matches ? 8 : 25;
  const count = examples.id.length;
  const GUESS = {inside: "said elsewhere in the passage", outside: "not in the passage"};
  const state = {a: 0, b: 0, show: "all", task: "", error: "", q: "", at: -1, page: 0};
  let found = [];

  // Columns come as one text: "=N" counts up from N, "b01-" has a digit for each row, else commas part the numbers.
  function column(text, length) {
    if (text[0] === "=") return Array.from({length}, (_, at) => at + Number(text.slice(1)));
    if (text[0] === "b") return Array.from(text.slice(1), (digit) => (digit === "-" ? null : Number(digit)));
    return text.split(",").map((number) => (number === "" ? null : Number(number)));
  }

  for (const reading of readings) {
    const length = reading.right.length - 1;
    for (const key of ["example", "right", "said", "error", "tokens", "shape"]) reading[key] = column(reading[key], length);
    for (const key of Object.keys(reading.metrics)) reading.metrics[key] = column(reading.metrics[key], length);
    reading.rows = new Int32Array(count).fill(-1);
    reading.example.forEach((example, row) => { reading.rows[example] = row; });
  }

  const example = (at) => ({
    task: tasks[examples.task[at]], id: examples.id[at], context: texts[examples.context[at]], question: texts[examples.question[at]],
    gold: examples.gold[at].map((text) => texts[text]), choices: examples.choices[at].map((text) => texts[text]),
  });

  function answer(reading, at) {
    const row = reading.rows[at];
    if (row < 0) return null;
    const made = {
      right: reading.right[row] === 1, said: texts[reading.said[row]], tokens: reading.tokens[row],
      error: reading.error[row] === null ? "" : texts[reading.error[row]], row,
      gold: reading.gold[row] ? reading.gold[row].map((text) => texts[text]) : null,
    };
    if (!made.right && !made.error) {
      made.error = texts[examples.context[at]].includes(made.said) && made.said ? GUESS.inside : GUESS.outside;
    }
    return made;
  }

  function prompt(reading, row) {
    if (reading.shape[row] === null) return null;
    const kept = shapes[reading.shape[row]];
    const counts = !reading.counts[row] ? [0, reading.tokens[row]] : reading.counts[row];
    const pieces = kept.pieces.map(([text, block], at) => ({text, block, count: counts[at + 1]}));
    return {memory: counts[0], pieces, layers: kept.layers, leaky: kept.leaky};
  }

  const ofTask = (at) => {
    const name = tasks[examples.task[at]];
    return !state.task || name === state.task || name.startsWith(`${state.task}/`);
  };

  function disagree(at) {
    let some = -1;
    for (const reading of readings) {
      if (reading.blind || reading.rows[at] < 0) continue;
      const right = reading.right[reading.rows[at]];
      if (some >= 0 && right !== some) return true;
      some = right;
    }
    return false;
  }

  const SHOW = {
    all: () => true,
    broke: (a, b) => a && b && !a.right && b.right,
    mended: (a, b) => a && b && a.right && !b.right,
    wrong: (a, b) => a && b && !a.right && !b.right,
    right: (a, b) => a && b && a.right && b.right,
    differ: (a, b) => a && b && a.said !== b.said,
    disagree: (a, b, at) => disagree(at),
  };

  function matches(at, query, a, b) {
    if (!query) return true;
    const told = example(at);
    return [told.id, told.task, told.question, told.context, ...told.gold, a?.said ?? "", b?.said ?? ""]
      .some((text) => text.toLowerCase().includes(query));
  }

  function search() {
    const query = state.q.trim().toLowerCase();
    const errors = new Map();
    found = [];
    for (let at = 0; at < count; at++) {
      if (!ofTask(at)) continue;
      const a = answer(readings[state.a], at), b = answer(readings[state.b], at);
      if ((!a && !b) || !SHOW[state.show](a, b, at) || !matches(at, query, a, b)) continue;
      if (a && !a.right) errors.set(a.error, (errors.get(a.error) ?? 0) + 1);
      if (state.error && a?.error !== state.error) continue;
      found.push(at);
    }
    return errors;
  }

  function option(value, text) {
    const made = element("option", "", text);
    made.value = value;
    return made;
  }

  function mark(reply) {
    const made = element("span", reply.right ? "verdict yes" : "verdict no", reply.right ? "✓" : "✗");
    made.append(element("span", "unseen", reply.right ? "right: " : "wrong: "));
    return made;
  }

  function said(reply) {
    const cell = element("td", "said");
    const text = element("span");
    if (reply) text.append(mark(reply), reply.said || "(nothing)");
    else text.append("–");
    cell.append(text);
    return cell;
  }

  function list() {
    const body = get("list").tBodies[0];
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const rows = found.slice(state.page * PAGE, (state.page + 1) * PAGE).map((at) => {
      const row = element("tr", at === state.at ? "chosen" : "");
      const name = element("th");
      name.scope = "row";
      const button = element("button", "pick");
      button.type = "button";
      button.dataset.at = at;
      button.setAttribute("aria-pressed", String(at === state.at));
      button.append(element("span", "question", texts[examples.question[at]] || examples.id[at]), element("small", "", tasks[examples.task[at]]));
      name.append(button);
      row.append(name, said(answer(readings[state.a], at)), said(answer(readings[state.b], at)));
      return row;
    });
    body.replaceChildren(...rows);
    get("page").textContent = found.length ? `${state.page * PAGE + 1} to ${Math.min(found.length, (state.page + 1) * PAGE)} of ${found.length.toLocaleString("en")}` : "";
    get("earlier").disabled = state.page === 0;
    get("later").disabled = state.page >= pages - 1;
  }

  function kinds(errors) {
    const total = [...errors.values()].reduce((sum, one) => sum + one, 0);
    const buttons = [...errors].sort((a, b) => b[1] - a[1]).map(([name, times]) => {
      const made = element("button", state.error === name ? "kind on" : "kind");
      made.type = "button";
      made.setAttribute("aria-pressed", String(state.error === name));
      const bar = element("span", "share");
      bar.style.width = `${(100 * times) / total}%`;
      made.append(bar, element("b", "", times.toLocaleString("en")), ` ${name}`);
      made.addEventListener("click", () => change({error: state.error === name ? "" : name}));
      return made;
    });
    get("kinds").replaceChildren(...(total ? [element("span", "kindstitle", `How ${readings[state.a].name} is wrong here:`), ...buttons] : []));
    const names = [...new Set([...errors.keys(), ...(state.error ? [state.error] : [])])];
    get("pick-error").replaceChildren(option("", "in any way"), ...names.map((name) => option(name, name)));
    get("pick-error").value = state.error;
  }

  function metric(name, value) {
    if (value === null || value === undefined) return "";
    return name === "nll" || !Number.isInteger(value) ? value.toPrecision(3).replace(/\.?0+$/, "") : String(value);
  }

  function detail() {
    const place = get("detail");
    if (state.at < 0 || !found.length) {
      place.replaceChildren(element("p", "nothing", found.length ? "Choose an example." : "No example fits these filters."));
      return;
    }
    const told = example(state.at);
    const shown = readings.filter((reading) => reading.rows[state.at] >= 0);
    const first = [readings[state.a], readings[state.b]].filter((reading, at, all) => shown.includes(reading) && all.indexOf(reading) === at);
    const ordered = [...first, ...shown.filter((reading) => !first.includes(reading))];
    const head = element("div", "head");
    const step = (by, label) => {
      const made = element("button", "", label);
      made.type = "button";
      made.disabled = !found[found.indexOf(state.at) + by];
      if (found.indexOf(state.at) + by < 0) made.disabled = true;
      made.addEventListener("click", () => move(by));
      return made;
    };
    head.append(element("h4", "", told.question || told.id), element("p", "", `${told.task} · ${told.id}`));
    const steps = element("p", "steps");
    steps.append(step(-1, "Previous"), step(1, "Next"));
    head.append(steps);
    const passage = element("p", "passage");
    const wrong = shown.map((reading) => answer(reading, state.at)).find((reply) => !reply.right);
    if (told.context) passage.append(marked(told.context, told.gold, first.length ? answer(first[0], state.at).said : wrong?.said ?? ""));
    else passage.append(element("em", "", "The text of this example was not kept with the run."));
    const gold = element("p", "goldline");
    gold.append(element("span", "label", "Right answer "), element("b", "", told.gold.join(" or ") || "not kept"));
    if (told.choices.length) gold.append(element("span", "label", " of "), told.choices.join(" · "));
    const metrics = [...new Set(ordered.flatMap((reading) => Object.keys(reading.metrics)))]
      .filter((name) => ordered.some((reading) => (reading.metrics[name] ?? [])[reading.rows[state.at]] != null));
    const table = element("table", "arms");
    const top = element("tr");
    for (const name of ["Reading", "Said", "How", ...metrics, "tokens"]) {
      const cell = element("th", metrics.includes(name) || name === "tokens" ? "num" : "", name.replaceAll("_", " "));
      cell.scope = "col";
      top.append(cell);
    }
    const thead = element("thead");
    thead.append(top);
    const body = element("tbody");
    for (const reading of ordered) {
      const reply = answer(reading, state.at);
      const row = element("tr", first.includes(reading) ? "first" : "");
      const name = element("th");
      name.scope = "row";
      for (const part of reading.name.split(/(?<=[_/])/)) name.append(part, element("wbr"));
      if (reading.wire) name.append(element("small", "wire", reading.wire));
      row.append(name, said(reply), element("td", "how", reply.right ? "" : reply.error));
      for (const each of metrics) row.append(element("td", "num", metric(each, (reading.metrics[each] ?? [])[reply.row])));
      row.append(element("td", "num", String(reply.tokens)));
      body.append(row);
    }
    table.append(thead, body);
    const wide = element("div", "wide");
    wide.tabIndex = 0;
    wide.setAttribute("role", "region");
    wide.setAttribute("aria-label", "Every reading of this example");
    wide.append(table);
    place.replaceChildren(head, gold, passage, wide, ...ordered.map((reading) => read(reading, told, first.includes(reading))));
  }

  // What a reading got: open for the two that are compared, drawn when it is opened for the others.
  function read(reading, told, open) {
    const made = element("details", "got");
    const reply = answer(reading, state.at);
    const summary = element("summary");
    summary.append(mark(reply), element("b", "", reading.name), ` said ${reply.said || "(nothing)"}; what it read`);
    made.append(summary);
    const fill = () => {
      if (made.childElementCount > 1) return;
      const got = prompt(reading, reply.row);
      made.append(got ? drawing(got, told, reply.gold ?? told.gold, reply.said) : element("p", "nothing", "What it read was not kept with the run."));
    };
    made.addEventListener("toggle", () => { if (made.open) fill(); });
    if (open) { fill(); made.open = true; }
    return made;
  }

  function address() {
    const kept = new URLSearchParams();
    kept.set("a", readings[state.a].name);
    kept.set("b", readings[state.b].name);
    for (const key of ["show", "task", "error", "q"]) if (state[key] && state[key] !== "all") kept.set(key, state[key]);
    if (state.at >= 0) kept.set("id", examples.id[state.at]);
    history.replaceState(null, "", `#samples?${kept}`);
  }

  function change(changes, {quiet = false} = {}) {
    if (["a", "b", "show", "task", "q"].some((key) => key in changes) && !("error" in changes)) changes.error = "";
    Object.assign(state, changes);
    if (!("page" in changes) && !("at" in changes)) state.page = 0;
    const errors = search();
    if (!found.includes(state.at)) state.at = found.length ? found[0] : -1;
    get("pick-a").value = state.a;
    get("pick-b").value = state.b;
    get("pick-show").value = state.show;
    get("pick-task").value = state.task;
    if (get("search").value !== state.q) get("search").value = state.q;
    kinds(errors);
    list();
    detail();
    get("count").textContent = `${found.length.toLocaleString("en")} of ${count.toLocaleString("en")} examples`;
    if (!quiet) address();
  }

  function choose(at, focus) {
    state.at = at;
    state.page = Math.floor(found.indexOf(at) / PAGE);
    list();
    detail();
    address();
    if (focus) document.querySelector(`.pick[data-at="${at}"]`)?.focus({preventScroll: false});
  }

  function move(by, focus) {
    const next = found[found.indexOf(state.at) + by];
    if (next !== undefined) choose(next, focus);
  }

  // #samples?a=READING&b=READING&show=broke, as the links in the tables have it.
  function follow() {
    const [place, query] = location.hash.split("?");
    if (place !== "#samples" || query === undefined) return false;
    const asked = new URLSearchParams(query);
    const named = (key) => readings.findIndex((reading) => reading.name === asked.get(key) || (reading.study === asked.get("study") && reading.reading === asked.get(key)));
    const changes = {show: asked.get("show") in SHOW ? asked.get("show") : "all", task: asked.get("task") ?? "", error: asked.get("error") ?? "", q: asked.get("q") ?? ""};
    for (const key of ["a", "b"]) if (named(key) >= 0) changes[key] = named(key);
    const at = asked.has("id") ? examples.id.indexOf(asked.get("id")) : -1;
    change({...changes, page: 0, at});
    if (at >= 0) choose(state.at);
    get("samples").scrollIntoView();
    return true;
  }

  function begin() {
    if (!readings.length || !count) {
      get("filters").hidden = true;
      document.querySelector(".browser").hidden = true;
      get("count").textContent = "There are no samples: no evaluation is done.";
      return;
    }
    for (const id of ["pick-a", "pick-b"]) get(id).replaceChildren(...readings.map((reading, at) => option(at, reading.name + (reading.leaks ? " (leaks)" : ""))));
    const families = [...new Set(tasks.filter((name) => name.includes("/")).map((name) => name.split("/")[0]))];
    get("pick-task").replaceChildren(option("", "all tasks"), ...families.map((name) => option(name, `${name} (family)`)), ...tasks.map((name) => option(name, name)));
    const seeing = readings.findIndex((reading) => !reading.blind);
    state.b = Math.max(0, seeing);
    const other = readings.findIndex((reading, at) => !reading.blind && at !== state.b);
    state.a = other < 0 ? readings.findIndex((_, at) => at !== state.b) : other;
    if (state.a < 0) state.a = state.b;
    get("pick-a").addEventListener("change", (event) => change({a: +event.target.value}));
    get("pick-b").addEventListener("change", (event) => change({b: +event.target.value}));
    get("pick-show").addEventListener("change", (event) => change({show: event.target.value}));
    get("pick-task").addEventListener("change", (event) => change({task: event.target.value}));
    get("pick-error").addEventListener("change", (event) => change({error: event.target.value}));
    get("filters").addEventListener("submit", (event) => event.preventDefault());
    let waiting = 0;
    get("search").addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => change({q: event.target.value}), 120);
    });
    get("list").addEventListener("click", (event) => {
      const row = event.target.closest("tr")?.querySelector(".pick");
      if (!row) return;
      choose(+row.dataset.at, true);
      if (narrow.matches) get("detail").scrollIntoView();
    });
    get("earlier").addEventListener("click", () => change({page: state.page - 1}));
    get("later").addEventListener("click", () => change({page: state.page + 1}));
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.matches("input, select, textarea");
      const listed = event.target.matches(".pick");
      if (event.key === "/" && !typing) { event.preventDefault(); get("search").focus(); }
      else if ((event.key === "j" && !typing) || (event.key === "ArrowDown" && listed)) { event.preventDefault(); move(1, listed); }
      else if ((event.key === "k" && !typing) || (event.key === "ArrowUp" && listed)) { event.preventDefault(); move(-1, listed); }
    });
    addEventListener("hashchange", follow);
    if (!follow()) change({}, {quiet: true});
  }

  begin();
})();
