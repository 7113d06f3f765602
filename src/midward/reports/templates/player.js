"use strict";
// The step player. Data are text: they reach the page through textContent and attributes of our own alone.
(() => {
  const MASK = -1, NEVER = -1, FORCED = -2, CLIP = 24, STEP_MS = 700, SVG = "http://www.w3.org/2000/svg";

  function make(tag, name, text) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function draw(parent, tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const name in attributes) element.setAttribute(name, attributes[name]);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  }

  const clip = (text, most) => { // by code points
    const all = Array.from(text.slice(0, 2 * most + 2));
    return all.length > most ? all.slice(0, most - 1).join("") + "…" : text;
  };
  const blank = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^[ \u00a0]+|[ \u00a0]+$/g, (all) => "␣".repeat(all.length));
  const shown = (text) => clip(blank(text.replace(/^ (?=.)/s, "")), CLIP); // one leading space is a gap between words
  const width = (text) => Array.from(text).reduce((sum, one) => sum + (one >= "\u2e80" ? 2 : 1), 0);

  class Generation {
    constructor(element, record, steps) {
      Object.assign(this, record);
      this.element = element;
      this.texts = this.tokens.map(([text]) => shown(text));
      const length = this.commit.length;
      let before = new Int32Array(length).fill(MASK);
      this.frames = this.changes.map((pairs) => {
        before = before.slice();
        for (let i = 0; i < pairs.length; i += 2) before[pairs[i]] = pairs[i + 1];
        return before;
      });
      const start = new Int32Array(length).fill(MASK); // before the first step: what is forced
      if (this.frames.length) this.commit.forEach((at, p) => { if (at === FORCED) start[p] = this.frames[0][p]; });
      this.frames.unshift(start);
      this.told = -1;
      this.canvas = element.querySelector(".canvas");
      this.readout = element.querySelector(".readout");
      const last = this.frames[this.frames.length - 1];
      this.chips = this.commit.map((at, p) => this.chip(at, p, last[p]));
      if (this.chips.length) this.chips[0].tabIndex = 0;
      for (const part of element.querySelectorAll("[hidden]")) part.hidden = false;
      this.plots = [...element.querySelectorAll(".plot")].map((figure) => new Plot(figure, this, steps));
      this.canvas.addEventListener("mouseover", (event) => this.tell(this.chips.indexOf(event.target.closest("li"))));
      this.canvas.addEventListener("mouseleave", () => this.tell(this.chips.indexOf(document.activeElement)));
      this.canvas.addEventListener("focusin", (event) => this.tell(this.chips.indexOf(event.target)));
      this.canvas.addEventListener("keydown", (event) => this.key(event));
    }

    chip(at, p, last) { // as wide as what stands there at the end, so that nothing moves while the canvas fills
      const chip = this.canvas.appendChild(make("li", "token"));
      chip.appendChild(make("bdi"));
      chip.tabIndex = -1;
      const text = last === MASK ? "" : this.tokens[last][1] ? "∎" : this.texts[last];
      chip.style.width = `calc(${Math.max(1, Math.min(width(text), CLIP))}ch + .2rem + 2px)`;
      if (last !== MASK && this.tokens[last][0].startsWith(" ")) chip.dataset.gap = "";
      if (last !== MASK && this.tokens[last][0].includes("\n")) this.canvas.appendChild(make("br"));
      return chip;
    }

    stateOf(p, step) { // [class, words]
      const token = this.frames[this.place][p], at = this.commit[p];
      const end = token !== MASK && this.tokens[token][1] ? " end" : "";
      if (at === FORCED && token !== MASK) return ["forced" + end, "forced from the start"];
      if (at >= 0 && at <= step) return [(at === step ? "new" : "stands") + end, `committed at step ${at + 1}`];
      if (token === MASK) return ["mask", "masked"];
      return ["predicted" + end, `predicted at step ${this.steps[this.place - 1] + 1}, not committed`];
    }

    show(step) { // the state after this step, from 0; -1 is before the first
      let place = 0;
      while (place < this.steps.length && this.steps[place] <= step) place++;
      this.place = place;
      const now = place ? this.steps[place - 1] : -1, frame = this.frames[place];
      this.over = this.steps.length === 0 || step >= this.steps[this.steps.length - 1];
      this.count = 0;
      this.chips.forEach((chip, p) => {
        const token = frame[p], [state] = this.stateOf(p, step);
        if (state.startsWith("new")) this.count++;
        const name = `token ${state}${"gap" in chip.dataset ? " gap" : ""}`;
        const text = token === MASK ? "\u00a0" : this.tokens[token][1] ? "∎" : this.texts[token];
        if (chip.className !== name) chip.className = name;
        if (chip.firstChild.textContent !== text) chip.firstChild.textContent = text;
      });
      const of = this.total === null ? "" : ` of ${this.total}`, stopped = this.verdict && this.verdict.flagged && this.verdict.step !== null;
      this.said = this.steps.length === 0 ? "not generated" : now < 0 ? "before the first step"
        : this.over ? `${stopped ? "stopped" : "done"} after step ${now + 1}${of}` : `step ${now + 1}${of}`;
      this.element.querySelector(".state").textContent = this.said;
      for (const plot of this.plots) plot.show(step);
      if (this.verdict) this.judge(step);
      this.tell(this.told);
    }

    judge(step) {
      const { guard, looks, flagged, score, threshold, step: at } = this.verdict;
      const known = looks === "before" || this.over || (at !== null && step >= at - 1);
      const number = score === null ? "unscored" : `score ${score.toPrecision(3)}, threshold ${threshold.toPrecision(3)}`;
      const when = at === null ? "" : ` after step ${at}`, line = this.element.querySelector(".verdict");
      line.classList.toggle("flagged", known && flagged);
      line.lastElementChild.textContent = `Guard ${guard}: ` + (!known ? "nothing flagged so far"
        : flagged ? `flagged${when}, the response is withheld (${number})` : `passed (${number})`);
    }

    tell(p) { // about one token, below the canvas
      this.told = p;
      this.readout.replaceChildren();
      if (p < 0) return void this.readout.append("Point at a token to read when it was committed.");
      const token = this.frames[this.place][p], [, words] = this.stateOf(p, this.step);
      const parts = [`position ${p}`, words];
      const sure = this.confidence && this.commit[p] >= 0 && words.startsWith("committed") ? this.confidence[p] : null;
      if (sure !== null) parts.push(`confidence ${sure.toFixed(3)}`);
      this.readout.append(parts.join(" · "));
      if (token === MASK) return;
      const [text, end] = this.tokens[token];
      this.readout.append(" · ", make("bdi", "", JSON.stringify(clip(text, 80))), end ? " · ends the response" : "");
      if (text !== clip(text, 80)) {
        const whole = this.readout.appendChild(make("details"));
        whole.append(make("summary", "", `whole token, ${text.length} characters`), make("pre", "", text));
      }
    }

    key(event) { // from token to token
      const here = this.chips.indexOf(document.activeElement);
      const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: this.chips.length - 1 }[event.key];
      if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      const chip = this.chips[Math.max(0, Math.min(to, this.chips.length - 1))];
      for (const each of this.chips) each.tabIndex = each === chip ? 0 : -1;
      chip.focus();
    }
  }

  class Plot { // one value a step
    constructor(figure, generation, steps) {
      const [wide, high, left] = [figure.clientWidth || 520, 84, 30], values = generation[figure.dataset.plot];
      const limit = figure.dataset.plot === "scores" ? generation.verdict && generation.verdict.threshold : null;
      const most = limit === null ? 1 : 1.5 * limit; // what is above is drawn at the top; the number tells
      this.x = (t) => left + (wide - left - 8) * (steps > 1 ? t / (steps - 1) : 0.5);
      this.y = (v) => 6 + (high - 24) * (1 - Math.min(v / most, 1));
      const svg = draw(figure, "svg", { viewBox: `0 0 ${wide} ${high}`, role: "img" });
      Object.assign(this, { values, limit, figure, svg });
      for (const v of limit === null ? [0, 0.5, 1] : [0]) {
        draw(svg, "line", { class: "frame", x1: left, x2: wide - 8, y1: this.y(v), y2: this.y(v) });
        draw(svg, "text", { x: left - 6, y: this.y(v) + 4, "text-anchor": "end" }, v);
      }
      if (limit !== null) {
        draw(svg, "line", { class: "limit", x1: left, x2: wide - 8, y1: this.y(limit), y2: this.y(limit) });
        draw(svg, "text", { x: left - 6, y: this.y(limit) + 4, "text-anchor": "end" }, limit.toPrecision(2));
      }
      for (const t of [...new Set([0, Math.floor((steps - 1) / 2), steps - 1])])
        draw(svg, "text", { x: this.x(t), y: high - 3, "text-anchor": "middle" }, t + 1);
      draw(svg, "polyline", { class: "all", points: this.points(steps) });
      this.past = draw(svg, "polyline", { class: "past" });
      this.now = draw(svg, "circle", { class: "now", r: 4.5 });
    }

    points(count) {
      return this.values.slice(0, count).flatMap((v, t) => v === null ? [] : [`${this.x(t).toFixed(1)},${this.y(v).toFixed(1)}`]).join(" ");
    }

    show(step) {
      const t = Math.min(step, this.values.length - 1), value = t < 0 ? null : this.values[t];
      this.past.setAttribute("points", this.points(t + 1));
      this.now.setAttribute("visibility", value === null ? "hidden" : "visible");
      if (value !== null) {
        this.now.setAttribute("cx", this.x(t));
        this.now.setAttribute("cy", this.y(value));
        this.now.classList.toggle("over", this.limit !== null && value > this.limit);
      }
      const text = value === null ? "" : value.toFixed(2);
      this.figure.querySelector(".value").textContent = text;
      this.svg.setAttribute("aria-label", text ? `at step ${t + 1}: ${text}` : "nothing yet");
    }
  }

  function start(root) {
    const records = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const most = Math.max(0, ...records.map((one) => one.steps.length ? one.steps[one.steps.length - 1] + 1 : 0));
    const shownSteps = Math.max(most, ...records.map((one) => Math.min(one.total || 0, (one.signal || []).length)));
    const all = [...root.querySelectorAll(".generation")].map((element, i) => new Generation(element, records[i], shownSteps));
    const find = (name) => root.querySelector(`[data-do="${name}"]`);
    const [slider, plain, speed, status] = ["[type=range]", "[type=checkbox]", "select", "[role=status]"].map((one) => root.querySelector(one));
    let step = -1, timer = 0;
    slider.max = most;
    root.querySelector(".controls").hidden = false;

    function go(to, quietly) {
      step = Math.max(-1, Math.min(to, most - 1));
      for (const one of all) { one.step = step; one.show(step); }
      const told = step < 0 ? "start" : `step ${step + 1}`;
      slider.value = step + 1;
      slider.setAttribute("aria-valuetext", `${told} of ${most}`);
      root.querySelector(".counter").textContent = `${told} of ${most}`;
      find("first").disabled = find("back").disabled = step < 0;
      find("forth").disabled = find("last").disabled = step >= most - 1;
      root.dataset.step = step + 1;
      if (!quietly) status.textContent = `${told} of ${most}. ` + all.map((one) => {
        const title = one.element.querySelector("h3").textContent;
        return `${title}: ${one.over ? one.said : `${one.count} committed`}`;
      }).join(". ");
    }

    function pause() {
      timer = clearTimeout(timer);
      root.classList.remove("playing");
      find("play").setAttribute("aria-label", "Play");
    }

    function tick() {
      go(step + 1, step + 1 < most - 1); // while playing only the end is announced
      if (step >= most - 1) pause();
      else timer = setTimeout(tick, STEP_MS / speed.value);
    }

    function play() {
      if (timer) return pause();
      if (step >= most - 1) go(-1, true);
      root.classList.add("playing");
      find("play").setAttribute("aria-label", "Pause");
      timer = setTimeout(tick, STEP_MS / speed.value / 2);
    }

    const deeds = { first: () => go(-1), back: () => go(step - 1), forth: () => go(step + 1), last: () => go(most - 1), play };
    for (const name in deeds) find(name).addEventListener("click", () => { if (name !== "play") pause(); deeds[name](); });
    slider.addEventListener("input", () => { pause(); go(slider.value - 1); });
    plain?.addEventListener("change", () => root.classList.toggle("plain", !plain.checked));
    const keys = { ArrowLeft: "back", ArrowRight: "forth", Home: "first", End: "last", " ": "play" };
    const obey = (event) => {
      const own = event.target, deed = keys[event.key];
      if (event.key === "Escape" && own.matches("li")) return find("play").focus();
      if (!deed || event.altKey || event.ctrlKey || event.metaKey || own.matches("select, summary, pre")) return;
      if (event.key === " " ? own.matches("button, [type=checkbox]") : own === slider) return; // the element's own keys do it
      event.preventDefault();
      if (deed !== "play") pause();
      deeds[deed]();
    };
    root.addEventListener("keydown", obey);
    // Keys work before anything has the focus, too: they go to the first player that can be seen.
    document.addEventListener("keydown", (event) => {
      const seen = [...document.querySelectorAll(".player")].find((one) => one.checkVisibility() && onScreen(one));
      const free = ["ArrowLeft", "ArrowRight", " "].includes(event.key) && event.target === document.body;
      if (free && seen === root) obey(event);
    });
    go(most - 1, true); // what came out; playing begins at the start
  }

  function onScreen(element) {
    const at = element.getBoundingClientRect();
    return at.bottom > 0 && at.top < innerHeight;
  }

  for (const root of document.querySelectorAll(".player")) start(root);
})();
