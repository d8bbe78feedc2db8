// What a reader got, drawn: who sees whom as a picture, and the prompt's text with its blocks and what was said in it.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const CONTEXT = "\ue000", QUESTION = "\ue001";
  const SIDE = 132;

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function shape(tag, attributes, parent) {
    const made = document.createElementNS(SVG, tag);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    parent.append(made);
    return made;
  }

  // Runs of columns: {block, count, memory}. The matrix has a row for each column that reads and a column for each it sees.
  function runs(prompt) {
    const found = prompt.memory ? [{block: -1, count: prompt.memory, memory: true}] : [];
    prompt.pieces.forEach((piece) => found.push({block: piece.block, count: piece.count}));
    return found;
  }

  function matrix(prompt) {
    const all = runs(prompt);
    const total = all.reduce((sum, run) => sum + run.count, 0) || 1;
    const scale = SIDE / total;
    const svg = document.createElementNS(SVG, "svg");
    Object.entries({viewBox: `-1 -1 ${SIDE + 2} ${SIDE + 2}`, class: "matrix", role: "img", "aria-label": sentence(prompt)})
      .forEach(([key, value]) => svg.setAttribute(key, value));
    shape("rect", {x: 0, y: 0, width: SIDE, height: SIDE, class: "unseen-area"}, svg);
    shape("path", {d: `M0 0L${SIDE} ${SIDE}H0Z`, class: "causal"}, svg);
    let at = 0;
    for (const run of all) {
      const start = at * scale, size = run.count * scale;
      if (run.memory) shape("rect", {x: 0, y: 0, width: size, height: SIDE, class: "memory"}, svg);
      if (run.block >= 0) shape("rect", {x: start, y: start, width: size, height: size, class: "both"}, svg);
      at += run.count;
    }
    shape("rect", {x: 0, y: 0, width: SIDE, height: SIDE, class: "frame"}, svg);
    return svg;
  }

  function sentence(prompt) {
    const total = prompt.pieces.reduce((sum, piece) => sum + piece.count, 0);
    const parts = [];
    if (prompt.memory) parts.push(`${prompt.memory} latents (keys and values) that every token sees`);
    let at = 0;
    const spans = [];
    for (const piece of prompt.pieces) {
      if (piece.block >= 0) spans.push(`${at + 1} to ${at + piece.count}`);
      at += piece.count;
    }
    const what = prompt.pieces.some((piece) => piece.text === null) ? "columns" : "tokens";
    const layers = prompt.layers ? ` in layers ${prompt.layers}` : "";
    const whole = prompt.pieces.length === 1 && spans.length === 1;
    parts.push(whole
      ? `all ${total} ${what} see each other in both directions${layers}`
      : spans.length
      ? `${total} ${what}: ${spans.join(" and ")} see each other in both directions${layers}, the rest those before them`
      : `${total} ${what}, each sees those before it`);
    if (prompt.leaky) parts.push("answers too, so that scores leak");
    return parts.join("; ");
  }

  // Text with the gold answers and what was said marked, as whole words.
  function marked(text, gold, said) {
    const made = document.createDocumentFragment();
    const words = [...gold.map((word) => [word, "gold"]), ...(gold.includes(said) ? [] : [[said, "said"]])]
      .filter(([word]) => word && word.length > 1 && word.length < 80).sort((a, b) => b[0].length - a[0].length);
    if (!words.length) { made.append(text); return made; }
    const kinds = new Map(words.map(([word, kind]) => [word.toLowerCase(), kind]));
    const escaped = words.map(([word]) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
    const pattern = new RegExp(`(?<![\\p{L}\\p{N}])(?:${escaped})(?![\\p{L}\\p{N}])`, "giu");
    let from = 0;
    for (const found of text.matchAll(pattern)) {
      made.append(text.slice(from, found.index));
      const mark = element("mark", kinds.get(found[0].toLowerCase()) || "said", found[0]);
      mark.title = mark.className === "gold" ? "the right answer" : "what this reading said";
      made.append(mark);
      from = found.index + found[0].length;
    }
    made.append(text.slice(from));
    return made;
  }

  function filled(text, example) {
    return text.replaceAll(CONTEXT, () => example.context).replaceAll(QUESTION, () => example.question);
  }

  function latents(count) {
    const made = element("span", "latents");
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", `${count} latents`);
    for (let at = 0; at < Math.min(count, 48); at++) made.append(element("i", ""));
    if (count > 48) made.append(`+${count - 48}`);
    return made;
  }

  function drawing(prompt, example, gold, said) {
    const made = element("div", "read");
    const text = element("p", "prompt");
    if (prompt.memory) text.append(latents(prompt.memory), " ");
    for (const piece of prompt.pieces) {
      const part = element("span", piece.block >= 0 ? `block block${piece.block % 2}` : "causal");
      if (piece.text === null) part.append(latents(piece.count));
      else part.append(marked(filled(piece.text, example), gold, said));
      text.append(part);
    }
    const picture = element("div", "picture");
    picture.append(matrix(prompt), element("p", "", sentence(prompt)));
    made.append(picture, text);
    return made;
  }

  Object.assign(window.latentwire, {drawing, marked, element});
})();
