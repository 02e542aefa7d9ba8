"use strict";
const each = (selector, action, root = document) => root.querySelectorAll(selector).forEach(action);

// Tables: a click on a heading sorts; numbers start with the largest.
each("table.sortable", (table) => {
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.v ?? cell.textContent.trim();
    return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
  };
  each("thead th", (heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const was = heading.getAttribute("aria-sort");
      const down = was === "none" ? heading.classList.contains("num") : was === "ascending";
      each("thead th", (other) => other.setAttribute("aria-sort", "none"), table);
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1));
      if (down) rows.reverse();
      body.append(...rows.map(([, row]) => row));
    });
  }, table);
});

// Filters above the table of problems.
each(".filters[data-table]", (bar) => {
  const rows = () => document.getElementById(bar.dataset.table).tBodies[0].rows;
  const search = bar.querySelector("input");
  const show = () => {
    const wanted = bar.querySelector("button.on").dataset.show;
    const text = search.value.trim().toLowerCase();
    for (const row of rows()) {
      const fits = wanted === "all" || (wanted === "contested" ? row.dataset.contested === "1" : wanted.split("|").includes(row.dataset.verdict));
      row.hidden = !fits || !row.dataset.text.includes(text);
    }
  };
  each("button", (button) => button.addEventListener("click", () => {
    each("button", (other) => other.classList.toggle("on", other === button), bar);
    show();
  }), bar);
  search.addEventListener("input", show);
});

// Tabs of a comparison, and links into closed parts of other tabs.
const openTab = (id) => {
  each(".tabs button", (tab) => tab.setAttribute("aria-selected", String(tab.dataset.tab === id)));
  each(".tab", (panel) => { panel.hidden = panel.id !== id; });
};
each(".tabs button", (tab) => tab.addEventListener("click", () => openTab(tab.dataset.tab)));
const follow = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  const panel = target.closest(".tab");
  if (panel && panel.hidden) openTab(panel.id);
  for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  target.scrollIntoView({ block: "start" });
};
addEventListener("hashchange", follow);
each("a[href^='#']", (link) => link.addEventListener("click", () => { if (link.hash === location.hash) follow(); }));
each("button.unfold", (button) => button.addEventListener("click", () => {
  const parts = [...button.closest(".problems").querySelectorAll("details.problem")];
  const open = parts.some((part) => !part.open);
  parts.forEach((part) => { part.open = open; });
  button.textContent = open ? "collapse all" : "expand all";
}));
document.querySelector("button.theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// Trajectories are unpacked when opened.
const node = (name, style, text) => {
  const element = document.createElement(name);
  if (style) element.className = style;
  if (text !== undefined) element.textContent = text;
  return element;
};
const mark = (text, pattern, styleOf) => {
  const parts = [];
  let last = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(text.slice(last, match.index), node("span", styleOf(match), match[0]));
    last = match.index + match[0].length;
  }
  parts.push(text.slice(last));
  return parts;
};
const PYTHON = new RegExp([
  "(?<comment>#[^\\n]*)",
  "(?<string>[rbfRBF]{0,2}(?:\"\"\"[\\s\\S]*?\"\"\"|'''[\\s\\S]*?'''|\"(?:\\\\.|[^\"\\\\\\n])*\"|'(?:\\\\.|[^'\\\\\\n])*'))",
  "(?<keyword>\\b(?:and|as|assert|async|await|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|nonlocal|not|or|pass|raise|return|try|while|with|yield|None|True|False)\\b)",
  "(?<number>\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d*)?(?:[eE][+-]?\\d+)?)\\b)",
  "(?<call>\\b[A-Za-z_]\\w*(?=\\())",
].join("|"), "g");
// A text in a box; a long one is shown in full on request.
const box = (style, text, parts) => {
  const pre = node("pre", style);
  pre.append(...parts);
  if (text.length < 2500 && text.split("\n").length < 30) return [pre];
  pre.classList.add("long");
  const more = node("button", "more", `show all ${text.length.toLocaleString("en")} characters`);
  more.addEventListener("click", () => { pre.classList.remove("long"); more.remove(); });
  return [pre, more];
};
const code = (text) => box("code", text, mark(text, PYTHON, (match) => Object.entries(match.groups).find(([, found]) => found !== undefined)[0]));
const output = (text) => box("output", text, [text || "(no output)"]);
const prose = (text) =>
  box("prose", text, mark(text, /<\|[^<>\n]{0,40}?\|?>|<[a-z_]{0,20}\|>|<\/?(?:think|tool_call|tool_response)>|\\boxed\{[^}]*\}/g,
    (match) => (match[0].startsWith("\\") ? "boxed" : "token")));
const closed = (title, content) => {
  const part = node("details", "step inserted");
  part.append(node("summary", "", title), ...content);
  return part;
};
const tokens = (step) => `${step.n.toLocaleString("en")} tokens`;
const drawStep = (step, turn) => {
  if (step.kind === "prompt") return closed(`prompt · ${tokens(step)}`, prose(step.text));
  if (step.kind === "inserted") return closed(`inserted: ${step.why.replace("_", " ")} · ${tokens(step)}`, prose(step.text));
  const part = node("div", `step ${step.kind}`);
  const head = node("p", "head");
  part.append(head);
  if (step.kind === "tool") {
    head.append(node("b", "", "Python"), node("span", "soft", ` · ${step.s} s`));
    if (step.error) { head.append(node("span", "failed", step.error)); part.classList.add("broken"); }
    part.append(...code(step.code), ...output(step.output));
  } else {
    head.append(node("b", "", `turn ${turn}`), node("span", "soft", ` · ${tokens(step)} · ${step.s} s · ${step.why.replace("_", " ")}`));
    part.append(...prose(step.text));
  }
  return part;
};
const unpack = async (text) => {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
};
each("details.attempt", (part) => part.addEventListener("toggle", async () => {
  const packed = document.getElementById(part.dataset.text);
  if (!part.open || part.dataset.drawn || !packed) return;
  part.dataset.drawn = "1";
  const steps = await unpack(packed.textContent);
  let turn = 0;
  part.querySelector(".steps").replaceChildren(...steps.map((step) => drawStep(step, step.kind === "turn" ? ++turn : turn)));
}));
follow();
