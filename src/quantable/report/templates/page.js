"use strict";
{
  const tooltip = document.getElementById("tooltip");
  const words = new WeakMap();
  for (const mark of document.querySelectorAll(".tip")) {
    const title = mark.querySelector("title");  // replaced by a tooltip that the keyboard reaches too
    words.set(mark, title.textContent);
    if (mark.getAttribute("role") === "img") mark.setAttribute("aria-label", title.textContent.replaceAll("\n", ", "));
    title.remove();
  }
  const hide = () => { tooltip.hidden = true; };
  const show = (mark, x, y) => {
    tooltip.textContent = words.get(mark);
    tooltip.hidden = false;
    const { width, height } = tooltip.getBoundingClientRect();
    tooltip.style.left = Math.max(4, Math.min(x + 12, document.documentElement.clientWidth - width - 4)) + "px";
    tooltip.style.top = (y + 16 + height > innerHeight ? Math.max(4, y - height - 12) : y + 16) + "px";
  };
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest?.(".tip");
    if (mark) show(mark, event.clientX, event.clientY); else hide();
  });
  const showFocused = () => {
    const mark = document.activeElement.closest(".tip");
    if (!mark) return hide();
    const { right, bottom } = mark.getBoundingClientRect();
    show(mark, right - 12, bottom - 12);
  };
  document.addEventListener("focusin", showFocused);
  addEventListener("scroll", showFocused, { passive: true });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const mark = event.target.closest?.(".points .tip");
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!mark || !step) return;
    event.preventDefault();
    const all = [...mark.closest("svg").querySelectorAll(".tip")];
    const next = all[(all.indexOf(mark) + step + all.length) % all.length];
    mark.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // a file's page may not have the clipboard
      const field = document.createElement("textarea");
      field.value = text;
      document.body.append(field);
      field.select();
      const done = document.execCommand("copy");
      field.remove();
      if (!done) throw new Error("the clipboard is closed");
    }
  };
  const say = (button, word) => {
    button.dataset.word ??= button.textContent;
    button.textContent = word;
    setTimeout(() => { button.textContent = button.dataset.word; }, 1600);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    copy(code.textContent).then(() => say(button, "Copied"), () => {
      getSelection().selectAllChildren(code);
      say(button, "Selected");
    });
  });

  const data = new Map();
  const dataOf = (article) => {
    if (!data.has(article)) data.set(article, JSON.parse(article.querySelector("script.data").textContent));
    return data.get(article);
  };
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const grid = (head, lines, label) => {
    const box = element("div", undefined, { class: "box", role: "region", tabindex: 0, "aria-label": label });
    const table = element("table");
    const top = element("tr");
    for (const word of head) top.append(element("th", word, { scope: "col" }));
    const body = element("tbody");
    for (const line of lines) {
      const row = element("tr");
      for (const value of line) row.append(element("td", value === null ? "–" : String(value)));
      body.append(row);
    }
    table.append(element("thead"), body);
    table.tHead.append(top);
    box.append(table);
    return box;
  };
  const bitsOf = (one, layers) => {
    const kept = Object.fromEntries(layers.map((name, i) => [name, one.bits[i]]));
    return JSON.stringify({ schema_version: 1, network: one.network, source: one.source, layers: kept }, null, 1) + "\n";
  };
  const fill = (details) => {
    const name = details.querySelector(".label").textContent;
    const all = dataOf(details.closest("article"));
    for (const run of details.querySelectorAll(".run")) {
      const more = run.querySelector(".more");
      const one = all.rows[run.dataset.row][run.dataset.index];
      if (more.childElementCount) continue;
      if (one.bits) {
        const layers = all.layers[one.layers];
        const head = element("p", "Bits by layer", { class: "head" });
        const save = element("a", "Bits file", {
          download: `${run.dataset.row}-seed${one.seed}.json`,
          href: URL.createObjectURL(new Blob([bitsOf(one, layers)], { type: "application/json" })),
        });
        head.append(save);
        more.append(head, grid(["layer", "weights", "activations"], layers.map((name, i) => [name, ...one.bits[i]]), `Bits by layer: ${name}, seed ${one.seed}`));
      }
      const history = one.run && all.runs[one.run];
      if (history && history.lines.length) {
        const lines = history.lines.map((line) => line.map((value, i) => value?.toFixed(history.decimals[i]) ?? null));
        const every = history.every > 1 ? `, each ${history.every}th epoch` : "";
        more.append(element("p", `History${every}`, { class: "head" }), grid(history.head, lines, `History: ${name}, seed ${one.seed}`));
      }
    }
  };
  document.addEventListener("toggle", (event) => {
    if (event.target.matches?.("details.cell") && event.target.open) fill(event.target);
  }, true);
  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.matches("details.cell")) {
      target.open = true;
      target.scrollIntoView();
      target.querySelector("summary").focus({ preventScroll: true });
    }
  };
  addEventListener("hashchange", open);
  document.addEventListener("click", (event) => {  // again the same address
    const link = event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash) open();
  });
  open();

  const form = document.querySelector(".filters");
  if (form) {
    const lines = [...document.querySelectorAll(".list tbody tr")];
    const choices = [...form.querySelectorAll("select")];
    const filter = () => {
      const asked = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
      let kept = 0;
      for (const line of lines) {
        const fits = asked.every((word) => line.dataset.words.includes(word))
          && choices.every((choice) => !choice.value || line.dataset[choice.dataset.filter].split("|").includes(choice.value));
        line.hidden = !fits;
        kept += fits;
        const address = line.querySelector("a").getAttribute("href");
        if (address.startsWith("#")) document.getElementById(address.slice(1)).hidden = !fits;
      }
      for (const paper of document.querySelectorAll(".paper")) paper.hidden = !paper.querySelector("tbody tr:not([hidden])");
      document.getElementById("count").textContent = `${kept} of ${lines.length} tables`;
      document.getElementById("nothing").hidden = kept > 0;
    };
    form.addEventListener("input", filter);
    form.addEventListener("change", filter);
    form.addEventListener("reset", () => setTimeout(filter));
    form.addEventListener("submit", (event) => event.preventDefault());
    filter();  // a browser may keep what was typed before
  }
}
