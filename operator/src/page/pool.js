// One pool: its pods as columns, its servers as dots that move between them, and what is told of both below.

class Box {
  constructor(key) {
    this.key = key;
    this.columns = new Map();
    this.dots = new Map();
    this.cell = LARGEST;
    this.labels = [];
    this.stale = true;   // positions must be worked out anew
    this.news = true;    // texts too
    const root = this.root = el("section", "pool");
    const head = el("header");
    head.append(this.title = el("h2", "", key), this.facts = el("p", "facts"));
    this.title.id = `pool-${key}`;
    root.setAttribute("aria-labelledby", this.title.id);
    this.notes = el("ul", "notes");
    this.stage = el("div", "stage");
    this.rack = el("div", "columns");
    this.canvas = el("canvas");
    this.canvas.setAttribute("aria-hidden", "true");
    this.stage.append(this.rack, this.canvas);
    const below = el("div", "below");
    this.drains = el("div", "panel"); this.gaps = el("div", "panel"); this.moves = el("div", "panel");
    this.drains.dataset.panel = "drains"; this.gaps.dataset.panel = "gaps"; this.moves.dataset.panel = "moves";
    below.append(this.drains, this.gaps, this.moves);
    root.append(head, this.notes, this.stage, below);
    this.chart();
    new ResizeObserver(() => { this.stale = true; wake(); }).observe(this.stage);
    this.stage.addEventListener("pointermove", (event) => point(this, event));
    this.stage.addEventListener("pointerleave", () => { pointer = null; wake(); });
  }

  forget() {
    this.dots.clear();
    this.labels = [];
    for (const column of this.columns.values()) Object.assign(column, { slots: [], count: 0, hole: 0 });
    this.stale = this.news = true;
  }

  column(uid) {
    let column = this.columns.get(uid);
    if (!column) {
      this.columns.set(uid, column = new Column(uid));
      this.stale = true;
    }
    return column;
  }

  // The columns are those of the pods that are there, old revisions first, and of pods that left a moment ago.
  columnsFor() {
    const mine = pods.filter((pod) => pod.pool === this.key);
    for (const pod of mine) this.column(pod.uid).pod = pod;
    const present = new Set(mine.map((pod) => pod.uid));
    const now = performance.now();
    for (const [uid, column] of this.columns) {
      if (uid === NOWHERE || present.has(uid)) column.left = undefined;
      else column.left ??= now;
    }
    this.news = true;
  }

  order() {
    const now = performance.now();
    for (const [uid, column] of this.columns) {
      const gone = uid === NOWHERE ? column.count === 0 : column.left !== undefined && now - column.left > LEAVE && column.count === 0;
      if (!gone) continue;
      column.root.remove();
      this.columns.delete(uid);
      this.stale = true;
    }
    const place = (column) => column.uid === NOWHERE ? -1 : column.pod?.revision ?? 0;
    // Of one revision in the order in which they came: nothing jumps when a name sorts before another.
    const sorted = [...this.columns.values()].sort((a, b) => place(a) - place(b));
    sorted.forEach((column, at) => {
      if (this.rack.children[at] === column.root) return;
      this.rack.insertBefore(column.root, this.rack.children[at] ?? null);
      this.stale = true;
    });
  }

  put(key, server, old) {
    let dot = this.dots.get(key);
    const now = performance.now();
    this.news = true;
    if (!dot) {
      dot = { key, uid: server.pod, slot: this.column(server.pod).add(key), x: 0, y: 0, fx: 0, fy: 0, at: 0, lasts: 0, glows: 0 };
      this.dots.set(key, dot);
      dot.fresh = true;
      this.stale = true;
    } else if (dot.uid !== server.pod) {
      this.columns.get(dot.uid)?.drop(dot.slot);
      dot.uid = server.pod;
      dot.slot = this.column(server.pod).add(key);
      dot.flies = !still.matches;
      dot.glows = now + FLIGHT;
      this.stale = true;
    }
    dot.server = server;
    if (old && server.last?.gap && server.last.at !== old.last?.at) this.label(dot, spaced(server.last.gap), now);
  }

  remove(key) {
    const dot = this.dots.get(key);
    if (!dot) return;
    this.columns.get(dot.uid)?.drop(dot.slot);
    this.dots.delete(key);
    this.stale = this.news = true;
  }

  // Gaps fade in and out where servers arrive: few at a time, so that they can be read.
  label(dot, text, now) {
    const recent = this.labels.findLast((label) => label.dot.uid === dot.uid);
    if (recent && now - recent.made < 250) return;
    this.labels.push({ dot, text, made: now, at: now + FLIGHT * .6 });
  }

  // --- positions ---

  measure() {
    const stage = this.stage.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    const [w, h] = [Math.round(stage.width * ratio), Math.round(stage.height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) {
      Object.assign(this.canvas, { width: w, height: h });
      this.canvas.style.width = `${stage.width}px`;
      this.canvas.style.height = `${stage.height}px`;
    }
    let most = 1, width = Infinity, height = 0;
    for (const column of this.columns.values()) {
      const field = column.field.getBoundingClientRect();
      column.left0 = field.left - stage.left + 6;
      column.top0 = field.top - stage.top + 6;
      column.width = field.width - 12;
      width = Math.min(width, column.width);
      height = field.height - 12;
      most = Math.max(most, column.slots.length);
    }
    const fits = (cell) => Math.floor(width / cell) * Math.floor(height / cell);
    // Dots grow again only with room to spare, so that they do not breathe.
    while (this.cell > 3 && fits(this.cell) < most) this.cell -= .5;
    while (this.cell < LARGEST && fits(this.cell + .5) > most * 1.5) this.cell += .5;
    for (const column of this.columns.values()) {
      column.across = Math.max(1, Math.floor(column.width / this.cell));
    }
  }

  settle(now) {
    this.measure();
    for (const dot of this.dots.values()) {
      const column = this.columns.get(dot.uid);
      if (!column) continue;
      const x = column.left0 + (dot.slot % column.across + .5) * this.cell;
      const y = column.top0 + (Math.floor(dot.slot / column.across) + .5) * this.cell;
      if (dot.fresh) {
        Object.assign(dot, { x, y, fx: x, fy: y, at: now, lasts: 0, fresh: false, flies: false });
      } else if (dot.x !== x || dot.y !== y) {
        const [fx, fy] = this.where(dot, now);
        const lasts = still.matches ? 0 : dot.flies ? FLIGHT : SETTLE;
        // Those that are told of together set out one after the other, as they moved.
        const waits = dot.flies && lasts ? Math.random() * 160 : 0;
        Object.assign(dot, { x, y, fx, fy, at: now + waits, lasts, arcs: dot.flies && 10 + Math.random() * 44, flies: false });
      }
    }
    this.stale = false;
  }

  where(dot, now) {
    const t = dot.lasts ? Math.max(0, Math.min(1, (now - dot.at) / dot.lasts)) : 1;
    if (t === 1) return [dot.x, dot.y, 1];
    const eased = t < .5 ? 4 * t ** 3 : 1 - (2 - 2 * t) ** 3 / 2;
    const arc = dot.arcs ? Math.sin(Math.PI * eased) * Math.min(dot.arcs, Math.abs(dot.x - dot.fx) * .14) : 0;
    return [dot.fx + (dot.x - dot.fx) * eased, dot.fy + (dot.y - dot.fy) * eased - arc, t];
  }

  // --- drawing; whether there is more to come ---

  draw(now) {
    if (this.news) this.write();
    this.order();
    if (this.stale) this.settle(now);
    const ratio = devicePixelRatio || 1;
    const g = this.canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const radius = Math.max(1, Math.min(7, this.cell * .34));
    const groups = new Map(), flying = [];
    let busy = false;
    for (const dot of this.dots.values()) {
      const [x, y, t] = this.where(dot, now);
      if (t < 1) busy = true;
      if (t < 1 && dot.arcs) { flying.push([dot, x, y]); continue; }
      const age = now - dot.glows;
      if (dot.glows && age < GLOW) { busy = true; this.halo(g, x, y, radius, 1 - age / GLOW); }
      const phase = dot.server.phase;
      if (!groups.has(phase)) groups.set(phase, []);
      groups.get(phase).push(x, y);
    }
    for (const [phase, points] of groups) paint(g, phase, points, radius);
    for (const [dot, x, y] of flying) this.flight(g, dot, x, y, radius, now);
    if (found && this.dots.has(found)) this.mark(g, this.dots.get(found), radius, now);
    busy = this.write_labels(g, now) || busy;
    const leaving = [...this.columns.values()].some((column) => column.left !== undefined);
    if (leaving) this.news = true;
    return busy || leaving;
  }

  halo(g, x, y, radius, strength) {
    g.globalAlpha = strength * .85;
    g.strokeStyle = colours.moving;
    g.lineWidth = Math.max(1, radius * .45);
    g.beginPath();
    g.arc(x, y, radius + g.lineWidth * .9, 0, 7);
    g.stroke();
    g.globalAlpha = 1;
  }

  flight(g, dot, x, y, radius, now) {
    const [tx, ty] = this.where(dot, now - dot.lasts * .05);
    g.globalAlpha = .3;
    g.strokeStyle = colours.moving;
    g.lineWidth = radius * .8;
    g.lineCap = "round";
    g.beginPath();
    g.moveTo(tx, ty);
    g.lineTo(x, y);
    g.stroke();
    g.globalAlpha = 1;
    g.fillStyle = colours.moving;
    g.beginPath();
    g.arc(x, y, radius, 0, 7);
    g.fill();
  }

  mark(g, dot, radius, now) {
    const [x, y] = this.where(dot, now);
    g.strokeStyle = colours.ink;
    g.lineWidth = 2;
    g.beginPath();
    g.arc(x, y, radius + 4, 0, 7);
    g.stroke();
  }

  write_labels(g, now) {
    this.labels = this.labels.filter((label) => now - label.at < LABEL && this.dots.get(label.dot.key) === label.dot);
    g.font = "600 12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";
    g.textBaseline = "middle";
    for (const { dot, text, at } of this.labels) {
      if (now < at) continue;
      const t = (now - at) / LABEL;
      const [x, y] = this.where(dot, now);
      const wide = g.measureText(text).width;
      const [lx, ly] = [Math.min(x + 9, this.stage.clientWidth - wide - 12), y - 6 - t * 14];
      g.globalAlpha = Math.min(1, 3 * (1 - t));
      g.fillStyle = colours.card;
      g.beginPath();
      g.roundRect(lx - 5, ly - 9, wide + 10, 18, 6);
      g.fill();
      g.strokeStyle = colours.line;
      g.lineWidth = 1;
      g.stroke();
      g.fillStyle = colours.moving;
      g.fillText(text, lx, ly + .5);
      g.globalAlpha = 1;
    }
    return this.labels.length > 0;
  }

  at(x, y) {
    for (const column of this.columns.values()) {
      const across = Math.floor((x - column.left0) / this.cell), down = Math.floor((y - column.top0) / this.cell);
      if (across < 0 || down < 0 || across >= column.across) continue;
      const key = column.slots[down * column.across + across];
      if (key !== undefined && x < column.left0 + column.width) return this.dots.get(key);
    }
    return null;
  }

  // --- texts ---

  write() {
    this.news = false;
    const mine = drains.filter((drain) => drain.pool === this.key);
    let serving = 0, running = 0;
    for (const { server } of this.dots.values()) if (server.phase === "Running" || server.phase === "HandingOff") serving++;
    for (const column of this.columns.values()) {
      running += column.uid !== NOWHERE && column.left === undefined ? 1 : 0;
      this.write_column(column, mine.find((drain) => drain.podUid === column.uid));
    }
    const facts = [[this.dots.size, "server"], [serving, "serving", "serving"], [running, "pod"]];
    this.facts.replaceChildren(...facts.flatMap(([n, one, many], at) =>
      [at ? " · " : "", el("b", "", number(n)), ` ${n === 1 ? one : many ?? one + "s"}`]),
      ` · handoff ${this.pool.handoff ? "on" : "off"}`);
    Object.assign(this.root.dataset, { pool: this.key, servers: this.dots.size, serving });
    this.write_notes();
    this.write_drains(mine);
    this.write_moves();
  }

  write_column(column, drain) {
    const { pod, root } = column;
    set(column.total, column.count.toLocaleString("en"));
    attr(root, "data-servers", column.count);
    if (column.uid === NOWHERE) {
      set(column.name, "no pod");
      set(column.where, "waiting, stopped or failed");
      column.revision.hidden = column.state.hidden = true;
      attr(root, "data-pod", "");
      return;
    }
    root.classList.toggle("leaving", column.left !== undefined);
    // An owner may be known before its pod is, and after.
    if (!pod) { set(column.name, "unknown pod"); return; }
    set(column.name, short(pod.name));
    column.name.title = pod.name;
    set(column.where, `${pod.name.slice(0, pod.name.lastIndexOf("-")) || pod.name} on ${pod.node || "no node yet"}`);
    set(column.revision, `${pod.newest ? "new" : "old"}${pod.revision ? `, revision ${pod.revision}` : ""}`);
    column.revision.classList.toggle("newest", pod.newest);
    const state = column.left === undefined ? pod.state : "Ended";
    set(column.state, STATES[state]);
    column.state.className = `badge ${state}`;
    attr(root, "data-pod", pod.name);
    attr(root, "data-state", state);
    attr(root, "data-revision", pod.newest ? "new" : "old");
    attr(root, "aria-label", `pod ${pod.name}, ${pod.newest ? "newest" : "old"} revision, ${STATES[state]}, ${count(column.count, "server")}`);
    set(column.said, drain ? progress(drain) : "");
    set(column.why, pod.why);
    column.why.hidden = !pod.why;
    if (drain) fill(column, drain);
  }

  write_notes() {
    const notes = this.pool.why ? [this.pool.why] : [];
    for (const group of waiting) {
      if (group.pool === this.key) notes.push(`${count(group.servers, "server")} without a pod, ${group.reason}: ${group.why}`);
    }
    for (const drain of drains) {
      if (drain.pool === this.key && drain.phase === "Blocked") notes.push(`${short(drain.pod)} cannot hand off: ${drain.why}`);
    }
    const text = notes.join("\n");
    if (this.noted === text) return;
    this.noted = text;
    this.notes.replaceChildren(...notes.map((note) => el("li", "", note)));
  }

  write_drains(mine) {
    const text = JSON.stringify(mine.slice(0, 6)) + (mine.some((drain) => !drain.ended) ? Math.floor(performance.now() / 200) : "");
    if (this.drained === text) return;
    this.drained = text;
    if (!mine.length) {
      this.drains.replaceChildren(el("h3", "", "Drains"), el("p", "none", "None yet: a drain begins when a pod of this pool is told to stop."));
      return;
    }
    const table = el("table"), head = el("tr"), body = el("tbody");
    for (const [name, classes] of [["pod"], ["why"], [""], ["moved", "n"], ["stopped", "n"], ["failed", "n"], ["gap p50", "n"], ["max", "n"], ["took", "n"]]) {
      const th = el("th", classes, name);
      th.scope = "col";
      head.append(th);
    }
    for (const drain of mine.slice(0, 6)) body.append(...row(drain));
    table.append(el("thead"), body);
    table.tHead.append(head);
    this.drains.replaceChildren(el("h3", "", "Drains"), table);
  }

  chart() {
    const [w, h] = [400, 150];
    this.plot = el("canvas", "gaps");
    this.plot.setAttribute("role", "img");
    Object.assign(this.plot, { width: w, height: h });
    this.gaps.append(this.gapped = el("h3", "", "Gaps"), this.plot);
  }

  write_moves() {
    const all = [];
    for (const { key, server } of this.dots.values()) if (server.last) all.push([server.last.at, key, server.last]);
    all.sort((a, b) => b[0] - a[0] || (a[1] < b[1] ? -1 : 1));
    this.write_gaps(all.filter(([, , last]) => last.gap));
    const items = all.slice(0, 7).map(([, key, last]) => {
      const item = el("li");
      const how = spaced(last.gap) || `${last.result.toLowerCase()}${last.reason ? `, ${last.reason}` : ""}`;
      item.append(el("span", "who", bare(key)),
        el("span", "path", `${short(last.from)} → ${last.to ? short(last.to) : "store"}`),
        el("span", last.gap ? "gap" : "gap bad", how));
      return item;
    });
    const list = el("ol", "moves");
    list.append(...items);
    this.moves.replaceChildren(el("h3", "", "Last moves"), items.length ? list : el("p", "none", "None yet."));
  }

  // Every server's last gap, the latest move at the right; a log scale, since one slow move matters more than many quick ones.
  write_gaps(moves) {
    const gaps = moves.slice(0, 600).map(([, , last]) => ms(last.gap)).reverse();
    const sorted = [...gaps].sort((a, b) => a - b);
    const rank = (percent) => sorted[Math.max(0, Math.ceil(sorted.length * percent / 100) - 1)];
    const text = (gap) => gap >= 1000 ? `${(gap / 1000).toFixed(2)} s` : `${gap.toFixed(1)} ms`;
    const words = gaps.length ? `Last ${count(gaps.length, "gap")}: half within ${text(rank(50))}, longest ${text(rank(100))}` : "Gaps: nothing has moved yet";
    set(this.gapped, words);
    attr(this.plot, "aria-label", words);
    const ratio = devicePixelRatio || 1, box = this.plot.getBoundingClientRect();
    if (!box.width) return;
    Object.assign(this.plot, { width: Math.round(box.width * ratio), height: Math.round(box.height * ratio) });
    const g = this.plot.getContext("2d");
    g.scale(ratio, ratio);
    const bottom = box.height - 4, top = 8, left = 46;
    const highest = Math.max(100, rank(100) ?? 0), lowest = 1;
    const y = (gap) => bottom - Math.log(Math.max(gap, lowest) / lowest) / Math.log(highest * 1.2 / lowest) * (bottom - top);
    g.font = "11px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";
    g.textBaseline = "middle";
    for (let line = 1; line <= highest * 1.2; line *= 10) {
      g.fillStyle = colours.line;
      g.fillRect(left, Math.round(y(line)), box.width - left, 1);
      g.fillStyle = colours.soft;
      g.fillText(line >= 1000 ? `${line / 1000} s` : `${line} ms`, 0, Math.min(bottom - 5, y(line)));
    }
    const step = (box.width - left - 8) / Math.max(gaps.length, 60);
    g.fillStyle = colours.moving;
    gaps.forEach((gap, at) => {
      g.globalAlpha = .75;
      g.beginPath();
      g.arc(left + 4 + at * step, y(gap), 2, 0, 7);
      g.fill();
    });
    g.globalAlpha = 1;
  }
}

function paint(g, phase, points, radius) {
  g.fillStyle = g.strokeStyle = colours[phase];
  g.lineWidth = Math.max(1, radius * .35);
  g.beginPath();
  for (let i = 0; i < points.length; i += 2) {
    const [x, y] = [points[i], points[i + 1]];
    if (phase === "Failed") {
      g.moveTo(x - radius, y - radius); g.lineTo(x + radius, y + radius);
      g.moveTo(x + radius, y - radius); g.lineTo(x - radius, y + radius);
    } else if (radius < 2) {
      g.rect(x - radius, y - radius, 2 * radius, 2 * radius);
    } else {
      g.moveTo(x + radius, y);
      g.arc(x, y, HOLLOW.has(phase) ? radius - .5 : radius, 0, 7);
    }
  }
  if (phase === "Failed" || HOLLOW.has(phase)) g.stroke(); else g.fill();
}
