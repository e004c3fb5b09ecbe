"use strict";
(async () => {
  const at = (id) => document.getElementById(id);
  // Every text gets into the page through textContent or an attribute's value, so none of it is read as markup.
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function complain(message) {
    at("error").textContent = message;
    at("error").hidden = message === "";
  }
  // What the server says, or throws the message of what it complains about.
  async function told(address, options) {
    let response;
    try {
      response = await fetch(address, options);
    } catch {
      throw new Error("the server does not answer; is artkv serve still running?");
    }
    const tree = await response.json().catch(() => ({ error: `the server answers with ${response.status}` }));
    if (!response.ok) throw new Error(tree.error);
    return tree;
  }

  let model;
  try {
    model = await told("/model");
  } catch (error) {
    complain(error.message);
    return;
  }
  const number = (value) => value.toLocaleString("en");
  at("lead").textContent = model.has_prefix ? "Answers with the prefix and without it, by" : "A control, which has no prefix:";
  at("name").textContent = model.name;
  at("bounds").textContent =
    `${model.formats.join(", ")}; ${number(model.max_bytes / 2 ** 20)} MiB and ${number(model.max_pixels / 1e6)} million pixels at most`;
  at("question").maxLength = model.max_question;

  let file = null;
  let preview = null; // an address of the chosen file that the browser can show
  function choose(chosen) {
    complain("");
    if (preview !== null) URL.revokeObjectURL(preview);
    file = chosen;
    preview = URL.createObjectURL(chosen);
    at("preview").src = preview;
    at("chosen").textContent = chosen.name;
  }
  at("preview").addEventListener("load", () => { at("preview").hidden = false; });
  at("preview").addEventListener("error", () => { at("preview").hidden = true; }); // a TIFF, say
  at("file").addEventListener("change", () => {
    if (at("file").files.length) choose(at("file").files[0]);
  });
  const drop = at("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // else the browser would leave the page for the file
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  document.addEventListener("drop", (event) => {
    if (event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });

  function problem() {
    if (file === null) return "Choose a painting first.";
    if (file.size > model.max_bytes) {
      return `the file has ${(file.size / 2 ** 20).toFixed(1)} MiB, of ${model.max_bytes / 2 ** 20} at most; scale it down`;
    }
    return at("question").value.trim() === "" ? "Type a question." : "";
  }

  function column(one, place) {
    const answer = one.answer === "" ? "(nothing)" : one.answer;
    const numbers = `probability ${one.probability.toFixed(3)}, ${one.token_probability.toFixed(3)} a token`;
    return element("figure", { class: place === 0 && model.has_prefix ? "column first" : "column" },
      element("figcaption", {}, one.caption, element("bdi", { class: "given" }, answer), element("span", { class: "numbers" }, numbers)),
      element("img", { src: one.map, alt: `Where the model looks, ${one.caption}` }));
  }
  function show(reply) {
    at("asked").replaceChildren(element("bdi", {}, reply.question));
    const answers = reply.columns.map((one) => one.answer);
    at("difference").textContent = answers.length === 1 ? "The model was trained without a prefix, and has one answer."
      : answers[0] === answers[1] ? "The prefix does not change the answer." : "The prefix changes the answer.";
    at("columns").replaceChildren(
      ...reply.columns.map(column),
      element("figure", { class: "column" },
        element("figcaption", {}, "the picture"),
        element("img", { src: reply.picture, alt: "The painting" })));
    at("reply").hidden = false;
    at("asked").focus({ preventScroll: true });
    at("reply").scrollIntoView();
  }

  let isAsking = false;
  at("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (isAsking) return;
    complain(problem());
    if (!at("error").hidden) return;
    isAsking = at("send").disabled = true;
    at("status").textContent = "Asking; others may be before you …";
    try {
      const address = `/ask?question=${encodeURIComponent(at("question").value.toWellFormed())}`;
      const headers = { "Content-Type": "application/octet-stream" };
      show(await told(address, { method: "POST", body: file, headers }));
    } catch (error) {
      at("reply").hidden = true;
      complain(error.message);
    } finally {
      isAsking = at("send").disabled = false;
      at("status").textContent = "";
    }
  });
})();
