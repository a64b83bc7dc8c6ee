"use strict";
// Data are written through textContent and attributes alone: whatever they say is shown, and nothing of it is obeyed.
(() => {
  const LISTED = 100, RANKED = 60; // entries of the list, and examples of a ranking, that are drawn at once
  const data = JSON.parse(document.getElementById("data").textContent);
  const view = document.getElementById("view"), tabs = document.getElementById("tabs");
  const pictured = data.pictures.length > 0;

  const make = (tag, kind, ...inside) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    made.append(...inside.map((part) => (part instanceof Node ? part : document.createTextNode(String(part)))));
    return made;
  };
  const button = (text, act) => {
    const made = make("button", "", text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  };
  const number = (value) => (value === null ? "–" : String(Number(value.toPrecision(3))));
  const signed = (value) => (value > 0 ? "+" : "") + number(value);
  const labelOf = ({ label, truth }) => {
    if (truth === undefined) return label || "";
    return label === undefined ? `should be ${truth}` : `${label} → ${truth}`;
  };

  const LEVELS = 5; // of shade
  const scored = { shade: (value) => (value > 0 ? "up" : "down"), say: (value) => `score ${signed(value)}` };
  const lost = { shade: () => "loss", say: (value) => `loss ${number(value)}` };
  // A text by its tokens: a prompt, and targets with a value each, shaded by its share of the largest, `most`.
  function written({ pieces, targets }, values, most, { shade, say }) {
    let place = 0;
    const spans = pieces.map((piece, i) => {
      if (!targets[i]) return make("span", "prompt", piece);
      const value = values[place++] ?? null;
      const level = value && most ? Math.ceil((LEVELS * Math.min(Math.abs(value), most)) / most) : 0;
      const span = make("span", level ? shade(value) + level : "", piece);
      if (value !== null) span.title = say(value);
      return span;
    });
    return make("div", "says tokens", ...spans);
  }
  const largest = (lists) => Math.max(0, ...lists.flat().map((value) => Math.abs(value || 0)));

  function card(example, value, scores, most) {
    const facts = make("div", "facts");
    if (value !== undefined) facts.append(make("span", "score", value), " · ");
    const place = (example.place || []).map(([name, said]) => `${name} ${said}`);
    facts.append([`index ${example.index}`, ...place].join(" · "));
    const caption = make("figcaption");
    if (labelOf(example)) caption.append(make("span", "label", labelOf(example)));
    if (example.tokens && scores) caption.append(written(example.tokens, scores, most, scored));
    else if (example.tokens) caption.append(written(example.tokens, example.tokens.losses, largest([example.tokens.losses]), lost));
    else if (example.says) caption.append(make("div", "says", example.says));
    caption.append(facts);
    const figure = make("figure", example.truth === undefined ? "" : "wrong");
    if (example.picture !== undefined) {
      const image = make("img");
      image.loading = "lazy";
      image.alt = labelOf(example) || `example ${example.index}`;
      image.src = data.pictures[example.picture];
      figure.append(image);
    }
    figure.append(caption);
    return figure;
  }
  function grid(entries, say, scores = {}) {
    const most = largest(Object.values(scores));
    const cards = entries.map(([place, value]) => card(data.examples[place], say(value), scores[place], most));
    return make("div", pictured ? "grid" : "grid text", ...cards);
  }

  function bars([low, high, counts]) {
    const make = (tag, settings, text) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(settings)) made.setAttribute(name, value);
      if (text !== undefined) made.textContent = text;
      return made;
    };
    const width = 500, height = 90, most = Math.log1p(Math.max(...counts, 1)), step = width / (counts.length || 1);
    const plot = make("svg", { viewBox: `0 0 ${width} ${height + 18}`, role: "img" });
    const total = counts.reduce((sum, count) => sum + count, 0);
    plot.setAttribute("aria-label", `histogram of ${total} values from ${number(low)} to ${number(high)}`);
    const edge = (i) => low + ((high - low) * i) / counts.length;
    counts.forEach((count, i) => {
      const tall = (height * Math.log1p(count)) / most;
      const bar = make("rect", { x: i * step, y: height - tall, width: Math.max(step - 1, 1), height: tall });
      bar.append(make("title", {}, `${number(edge(i))} to ${number(edge(i + 1))}: ${count}`));
      plot.append(bar);
    });
    if (low < 0 && high > 0) {
      const zero = (-low / (high - low)) * width;
      plot.append(make("line", { x1: zero, x2: zero, y1: 0, y2: height }));
      plot.append(make("text", { x: zero, y: height + 14, "text-anchor": "middle" }, "0"));
    }
    plot.append(make("text", { x: 0, y: height + 14 }, number(low)));
    plot.append(make("text", { x: width, y: height + 14, "text-anchor": "end" }, number(high)));
    return plot;
  }

  const drawn = {
    distribution(tab) {
      view.append(...tab.parts.flatMap(([title, histogram]) => [make("h2", "", title), bars(histogram)]));
    },
    ranking(tab) {
      const draw = (from) => {
        view.append(grid(tab.entries.slice(from, from + RANKED), number));
        if (from + RANKED < tab.entries.length) {
          const more = button(`show more of ${tab.entries.length}`, () => (more.remove(), draw(from + RANKED)));
          view.append(more);
        }
      };
      draw(0);
    },
    queries(tab, at) {
      const find = make("input"), count = make("span", "dim"), list = make("ol"), answer = make("article");
      const words = tab.queries.map(({ of }) => {
        const { index, label, says, place } = data.examples[of];
        return [index, label, says, ...(place || []).map((part) => part.join(" "))].join(" ").toLowerCase();
      });
      let matching = tab.queries.map((_, q) => q), first = 0, shown = 0;

      const listPage = () => {
        list.replaceChildren(
          ...matching.slice(first, first + LISTED).map((q) => {
            const { index, label, says } = data.examples[tab.queries[q].of];
            const entry = button([index, label, says].filter((part) => part !== undefined).join(" · ").slice(0, 120), () => go(q));
            entry.setAttribute("aria-current", String(q === shown));
            return make("li", "", entry);
          }),
        );
        const last = Math.min(first + LISTED, matching.length);
        count.textContent = matching.length ? `${first + 1} to ${last} of ${matching.length}` : "no query says this";
        back.disabled = first === 0;
        forth.disabled = last === matching.length;
      };
      const turn = (by) => ((first = Math.max(0, first + by * LISTED)), listPage());
      const back = button("‹", () => turn(-1)), forth = button("›", () => turn(1));
      back.title = "earlier queries";
      forth.title = "later queries";

      const show = (q) => {
        shown = Math.min(Math.max(q, 0), tab.queries.length - 1);
        const query = tab.queries[shown], place = matching.indexOf(shown);
        if (place >= 0) first = place - (place % LISTED);
        listPage();
        const entry = list.querySelector("[aria-current=true]"); // the list moves, the page stays
        if (entry) list.scrollTop = entry.offsetTop - list.offsetTop - list.clientHeight / 2;
        const asked = card(data.examples[query.of]);
        asked.classList.add("asked");
        const before = button("← previous", () => step(-1)), after = button("next →", () => step(1));
        before.disabled = place <= 0;
        after.disabled = place < 0 || place === matching.length - 1;
        const told = make("span", "dim", `query ${shown + 1} of ${tab.queries.length}`);
        answer.replaceChildren(
          make("div", "pager", told, before, after),
          asked,
          make("h2", "", "helped most"),
          grid(query.helped, signed, query.tokens),
          make("h2", "", "harmed most"),
          grid(query.harmed, signed, query.tokens),
          make("h2", "", "all scores of this query (bars grow with the logarithm of the count)"),
          bars(query.scores),
        );
      };
      const go = (q) => {
        show(q); // at once: the address is told later, and keys may come faster
        location.hash = `${slug(tab.name)}/${q}`;
      };
      const step = (by) => {
        const next = matching[matching.indexOf(shown) + by];
        if (next !== undefined) go(next);
      };
      find.type = "search";
      find.placeholder = "search queries";
      find.setAttribute("aria-label", "search queries");
      find.addEventListener("input", () => {
        const asked = find.value.toLowerCase().split(/\s+/).filter(Boolean);
        matching = tab.queries.map((_, q) => q).filter((q) => asked.every((word) => words[q].includes(word)));
        first = 0;
        if (matching.length && !matching.includes(shown)) go(matching[0]);
        else show(shown);
      });
      view.append(
        make("div", "browse", make("aside", "", find, make("div", "pager", count, back, forth), list), answer),
      );
      show(at);
      current = { tab, step, follow: (q) => q !== shown && show(q) };
    },
  };

  const slug = (name) => encodeURIComponent(name.toLowerCase().replace(/\s+/g, "-"));
  let current = {};
  function route() {
    const [name, at] = location.hash.slice(1).split("/");
    const tab = data.tabs.find((one) => slug(one.name) === name) || data.tabs[0];
    if (!tab) return;
    if (current.tab === tab && current.follow) return void current.follow(Number(at) || 0);
    current = { tab };
    for (const entry of tabs.children) entry.setAttribute("aria-current", String(entry.textContent === tab.name));
    view.replaceChildren(make("p", "dim", tab.note));
    drawn[tab.kind](tab, Number(at) || 0);
  }
  tabs.append(...data.tabs.map((tab) => button(tab.name, () => (location.hash = slug(tab.name)))));
  document.addEventListener("keydown", (event) => {
    if (!current.step || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target instanceof HTMLInputElement;
    if (event.key === "/" && !typing) (event.preventDefault(), view.querySelector("input").focus());
    if (event.key === "ArrowRight" && !typing) current.step(1);
    if (event.key === "ArrowLeft" && !typing) current.step(-1);
  });
  window.addEventListener("hashchange", route);
  route();
})();
