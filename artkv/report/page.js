"use strict";
(() => {
  const PER_PAGE = 12;
  // A row of the data, see gallery() in cases.py.
  const ID = 0, PICTURE = 1, NAME = 2, QUESTION = 3, GOLD = 4, TYPE = 5, ANSWERS = 6, RIGHT = 7, DIFFERS = 8, CHOSEN = 9, GIVERS = 10;
  const at = (id) => document.getElementById(id);
  const parsed = (id) => JSON.parse(at(id).textContent);
  const { columns, rows, texts } = parsed("data");
  const attention = new Map(parsed("attention-data").cases.map((one) => [one.row, one]));
  let pictures = null; // the largest part of the file, parsed when the first is shown

  const column = (name) => columns.findIndex((one) => one.name === name);
  const on = column("on"), off = column("off");
  const isRight = (row, place) => (row[RIGHT] >> place) & 1;
  const text = (row, field) => texts[row[field]];

  // Every text gets into the page through textContent or an attribute's value, so none of it is read as markup.
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }
  const quoted = (value) => element("bdi", {}, value === "" ? "(nothing)" : value);

  const outcomes = { all: ["all questions", () => true] };
  if (off >= 0) {
    outcomes.gained = ["right only with the prefix", (row) => isRight(row, on) && !isRight(row, off)];
    outcomes.lost = ["right only without the prefix", (row) => !isRight(row, on) && isRight(row, off)];
  }
  outcomes.wrong = [off >= 0 ? "wrong with the prefix" : "wrong", (row) => !isRight(row, on)];
  if (columns.length > 1) outcomes.differing = ["differing answers", (row) => row[DIFFERS]];
  if (attention.size) outcomes.attention = ["with attention maps", (row) => attention.has(row)];

  const collator = new Intl.Collator("en", { numeric: true });
  const by = (field) => (a, b) => collator.compare(text(rows[a], field), text(rows[b], field)) || a - b;
  const sorts = {
    differing: ["differing answers first", (a, b) => rows[b][DIFFERS] - rows[a][DIFFERS] || a - b],
    file: ["order of the CSV file", (a, b) => a - b],
    wrong: ["wrong answers first", (a, b) => isRight(rows[a], on) - isRight(rows[b], on) || a - b],
    type: ["type", by(TYPE)],
    question: ["question", by(QUESTION)],
    gold: ["right answer", by(GOLD)],
    picture: ["picture", by(NAME)],
  };

  for (const [row, one] of [...attention]) {
    attention.delete(row);
    attention.set(rows[row], one);
  }
  function fill(select, choices) {
    for (const [value, [label]] of Object.entries(choices)) at(select).append(element("option", { value }, label));
  }
  fill("outcome", outcomes);
  fill("sort", sorts);
  const types = [...new Set(rows.map((row) => text(row, TYPE)))].sort(collator.compare);
  for (const type of types) at("type").append(element("option", { value: type }, type));

  let shown = []; // places in rows
  let page = 0;
  let searchable = null; // a lower-case text for each row, made at the first search

  function select() {
    const wanted = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const type = at("type").value;
    const keeps = outcomes[at("outcome").value][1];
    if (wanted.length && searchable === null) {
      searchable = rows.map((row) =>
        [row[ID], text(row, NAME), text(row, QUESTION), text(row, GOLD), ...row[ANSWERS].map((one) => texts[one])]
          .join("\n").toLowerCase());
    }
    shown = [];
    rows.forEach((row, place) => {
      if (type !== "" && text(row, TYPE) !== type) return;
      if (!keeps(row) || !wanted.every((word) => searchable[place].includes(word))) return;
      shown.push(place);
    });
    shown.sort(sorts[at("sort").value][1]);
    page = 0;
    show();
  }

  function painting(place, name) {
    if (place < 0) return element("span", { class: "none" }, `${name}: picture not in this file`);
    pictures ??= parsed("pictures");
    return element("img", { src: `data:image/jpeg;base64,${pictures[place]}`, alt: `Painting ${name}`, decoding: "async" });
  }
  const picture = (row) => painting(row[PICTURE], text(row, NAME));

  // What the model chose among few answers, and how sure it was; and whose prefix it was given.
  const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.01 ? 2 : 0)}%`;
  function beside(row, place) {
    const chosen = row[CHOSEN][place], giver = row[GIVERS][place], lines = [];
    if (giver) lines.push(element("span", { class: "aside" }, "prefix of ", quoted(texts[giver[1]])));
    if (chosen) {
      const [choice, probability, ofGold] = chosen;
      const right = texts[choice].toLowerCase() === text(row, GOLD).toLowerCase();
      const sure = probability === null ? "" : `, ${percent(probability)}`;
      const gold = right || ofGold === null ? "" : `; right answer ${percent(ofGold)}`;
      lines.push(element("span", { class: "aside" }, "chose ", quoted(texts[choice]), `${sure}${gold}`));
    }
    return lines;
  }

  function answers(row) {
    const list = element("ul", { class: "answers" });
    columns.forEach(({ label }, place) => {
      const right = isRight(row, place);
      list.append(element("li", {},
        element("span", { class: "label" }, label),
        element("span", { class: `given ${right ? "right" : "wrong"}` },
          quoted(texts[row[ANSWERS][place]]),
          element("span", { class: "mark-text", "aria-hidden": "true" }, right ? "✓" : "✗"),
          element("span", { class: "visually-hidden" }, right ? ", right" : ", wrong")),
        ...beside(row, place)));
    });
    return list;
  }

  const gold = (row) => element("p", { class: "gold" }, "Right answer: ", quoted(text(row, GOLD)));
  function meta(row) {
    const maps = attention.has(row) ? " · attention maps" : "";
    return element("p", { class: "meta" }, quoted(text(row, TYPE)), " · question ", quoted(row[ID]), maps);
  }

  // The paintings that lent their prefixes, beside the one that was asked about.
  function lenders(row) {
    const drawn = columns.flatMap(({ label }, place) => {
      if (!row[GIVERS][place]) return [];
      const [held, name] = row[GIVERS][place];
      return [element("figure", { class: "lender" }, painting(held, texts[name]),
        element("figcaption", {}, `${label}: the prefix was of `, quoted(texts[name])))];
    });
    return drawn.length ? [element("div", {}, ...drawn)] : [];
  }

  function card(place, index) {
    const row = rows[place];
    const open = element("button", { type: "button", class: "open" }, picture(row),
      element("span", { class: "visually-hidden" }, `, details of question ${row[ID]}`));
    open.addEventListener("click", () => openCase(index));
    return element("li", { class: "card" }, open, element("div", { class: "text" },
      element("p", { class: "question" }, quoted(text(row, QUESTION))), gold(row), answers(row), meta(row)));
  }

  const number = (value) => value.toLocaleString("en");
  function show() {
    const first = page * PER_PAGE;
    const part = shown.slice(first, first + PER_PAGE);
    at("cards").replaceChildren(...part.map((place, index) => card(place, first + index)));
    const all = rows.length === 1 ? "1 question" : `${number(rows.length)} questions`;
    at("count").textContent = shown.length ? `${number(shown.length)} of ${all}` : `None of ${all}`;
    const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    at("page").textContent = `Page ${number(page + 1)} of ${number(pages)}`;
    at("previous").disabled = page === 0;
    at("next").disabled = page + 1 >= pages;
  }
  function turn(by) {
    page += by;
    show();
    at("gallery").scrollIntoView();
  }

  // One question at a time.
  const dialog = at("case");
  let opened = 0; // a place in shown
  function openCase(index) {
    opened = index;
    const row = rows[shown[index]];
    const maps = attention.get(row);
    at("case-body").replaceChildren(
      element("div", { class: "detail" }, picture(row), element("div", {},
        element("h3", { id: "case-title" }, quoted(text(row, QUESTION))), gold(row), answers(row),
        element("p", { class: "meta" }, quoted(text(row, TYPE)), " · question ", quoted(row[ID]), " · ", quoted(text(row, NAME))),
        ...lenders(row))),
      ...(maps ? [attentionMaps(row, maps)] : []));
    at("case-previous").disabled = index === 0;
    at("case-next").disabled = index + 1 >= shown.length;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  function step(by) {
    if (shown[opened + by] !== undefined) openCase(opened + by);
  }
  at("case-previous").addEventListener("click", () => step(-1));
  at("case-next").addEventListener("click", () => step(1));
  at("case-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });

  // Attention, see attention.py: a byte for each patch of the picture, 255 the most of the map.
  function attentionMaps(row, { maps }) {
    const drawn = maps.map(({ title, words, grid: [height, width], bytes }) => {
      const canvas = element("canvas", { width: String(width), height: String(height), role: "img", "aria-label": `${title}: ${words}` });
      const context = canvas.getContext("2d");
      const image = context.createImageData(width, height);
      [...atob(bytes)].forEach((character, place) => {
        // Dark where it does not look, clear where it looks most.
        image.data[4 * place + 3] = Math.round(215 * (1 - character.charCodeAt(0) / 255));
      });
      context.putImageData(image, 0, 0);
      return element("figure", {}, element("div", { class: "stack" }, squeezed(row), canvas),
        element("figcaption", {}, element("b", {}, title), `: ${words}`));
    });
    return element("div", {}, element("h3", {}, "Where the query tokens look"), element("div", { class: "maps" }, ...drawn));
  }
  function squeezed(row) {
    const shownPicture = picture(row);
    shownPicture.setAttribute("alt", "");
    return shownPicture;
  }

  for (const id of ["type", "outcome", "sort"]) at(id).addEventListener("change", select);
  let pause = 0;
  at("search").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(select, 120);
  });
  at("reset").addEventListener("click", () => {
    at("search").value = "";
    for (const id of ["type", "outcome", "sort"]) at(id).selectedIndex = 0;
    select();
  });
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  at("show-attention")?.addEventListener("click", () => {
    at("reset").click();
    at("outcome").value = "attention";
    select();
    at("gallery").scrollIntoView();
    at("outcome").focus({ preventScroll: true });
  });
  select();
})();
