"use strict";
// Tooltips of everything with data-tip, by pointer and by focus; Escape hides one. Arrow keys walk a heat map.
(() => {
  const tip = document.getElementById("tip");
  let about = null;
  const hide = () => {
    tip.hidden = true;
    about?.removeAttribute("aria-describedby");
    about = null;
  };
  const show = (element) => {
    hide();
    about = element;
    tip.textContent = element.dataset.tip;
    tip.hidden = false;
    element.setAttribute("aria-describedby", "tip");
    const at = element.getBoundingClientRect();
    const left = at.left + at.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${at.top > tip.offsetHeight + 12 ? at.top - tip.offsetHeight - 8 : at.bottom + 8}px`;
  };
  const find = (event) => event.target.closest?.("[data-tip]");
  document.addEventListener("pointerover", (event) => {
    const element = find(event);
    if (element) show(element);
    else if (about && about !== document.activeElement) hide();
  });
  document.addEventListener("focusin", (event) => {
    const element = find(event);
    if (element) show(element);
    else hide();
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const cell = event.target.closest?.(".heat td");
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!cell || !by) return;
    event.preventDefault();
    const next = cell.closest("tbody").rows[cell.parentElement.rowIndex - 1 + by[0]]?.cells[cell.cellIndex + by[1]];
    if (next?.dataset.tip === undefined) return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
})();
