"use strict";
(() => {
  const cards = [...document.querySelectorAll(".card")];
  const search = document.getElementById("search");
  const filters = document.getElementById("filters");
  const boxes = [...filters.querySelectorAll("input")];
  const includes = JSON.parse(document.querySelector(".side").dataset.includes);

  // Accents and capitals make no difference to a search.
  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const texts = new Map(cards.map((card) => [card, plain(card.dataset.search)]));
  const chosen = (name) => boxes.filter((box) => box.name === name && box.checked).map((box) => box.value);

  function apply() {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    const rooms = chosen("room");
    const statuses = chosen("status");
    const have = chosen("have");
    const hand = new Set(have.flatMap((word) => [word, ...(includes[word] ?? [])]));
    let count = 0;
    for (const card of cards) {
      const { room, status, needs } = card.dataset;
      const fits =
        words.every((word) => texts.get(card).includes(word)) &&
        (!rooms.length || rooms.includes(room)) &&
        (!statuses.length || statuses.includes(status)) &&
        (!have.length || needs.split(" ").every((need) => hand.has(need)));
      card.hidden = !fits;
      count += fits;
    }
    for (const section of document.querySelectorAll(".room")) {
      section.hidden = !section.querySelector(".card:not([hidden])");
    }
    const active = rooms.length + statuses.length + have.length;
    document.getElementById("nothing").hidden = count > 0;
    document.getElementById("clear").hidden = !active && !words.length;
    document.getElementById("active").textContent = active ? `(${active})` : "";
    document.getElementById("shown").textContent =
      count === cards.length ? `${count} papers` : `${count} of ${cards.length} papers`;
  }

  function clear() {
    search.value = "";
    for (const box of boxes) box.checked = false;
    apply();
  }

  // A link to a card opens it, even when a filter hides it.
  function follow() {
    const card = cards.find((one) => `#${one.id}` === location.hash);
    if (!card) return;
    if (card.hidden) clear();
    card.open = true;
    card.scrollIntoView();
  }

  function copyButton(block) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(block);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    const frame = document.createElement("div");
    frame.className = "use";
    block.replaceWith(frame);
    frame.append(block, button);
  }

  const wide = matchMedia("(min-width: 861px)");
  const arrange = () => (filters.open = wide.matches);
  wide.addEventListener("change", arrange);
  search.addEventListener("input", apply);
  filters.addEventListener("change", apply);
  document.getElementById("clear").addEventListener("click", clear);
  window.addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
    event.preventDefault();
    search.focus();
  });
  for (const block of document.querySelectorAll("pre.command")) copyButton(block);
  arrange();
  apply();
  follow();
})();
