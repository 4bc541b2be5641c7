// One pod as a column, and how far its drain is.

const NOWHERE = ""; // the column of servers without a pod

class Column {
  constructor(uid) {
    this.uid = uid;
    this.slots = [];   // keys of servers; a hole is undefined
    this.count = 0;
    this.hole = 0;     // no hole before this place
    const root = this.root = el("article", "pod");
    const name = el("div", "name");
    name.append(this.name = el("span"), this.total = el("span", "count", "0"));
    this.where = el("div", "where");
    const badges = el("div", "badges");
    badges.append(this.revision = el("span", "badge"), this.state = el("span", "badge"), this.said = el("span", "said"));
    this.why = el("p", "why");
    this.field = el("div", "field");
    this.bar = el("div", "bar");
    this.bar.append(this.moved = el("i", "moved"), this.stopped = el("i", "stopped"), this.failed = el("i", "failed"));
    this.bar.setAttribute("role", "progressbar");
    this.field.append(this.bar);
    root.append(name, this.where, badges, this.why, this.field);
  }
  add(key) {
    while (this.hole < this.slots.length && this.slots[this.hole] !== undefined) this.hole++;
    this.slots[this.hole] = key;
    this.count++;
    return this.hole;
  }
  drop(slot) {
    this.slots[slot] = undefined;
    this.count--;
    this.hole = Math.min(this.hole, slot);
    while (this.slots.length && this.slots[this.slots.length - 1] === undefined) this.slots.pop();
  }
}

function progress(drain) {
  const rest = [drain.stopped && `${drain.stopped} stopped`, drain.failed && `${drain.failed} failed`].filter(Boolean);
  return [`${number(drain.moved)} of ${number(drain.total)} moved`, ...rest].join(", ");
}

function fill(bar, drain) {
  for (const part of ["moved", "stopped", "failed"]) bar[part].style.width = `${100 * drain[part] / Math.max(1, drain.total)}%`;
  attr(bar.bar, "aria-valuenow", drain.moved);
  attr(bar.bar, "aria-valuemax", drain.total);
  attr(bar.bar, "aria-label", progress(drain));
}

function row(drain) {
  const tr = el("tr"), bar = { bar: el("div", "bar"), moved: el("i", "moved"), stopped: el("i", "stopped"), failed: el("i", "failed") };
  bar.bar.append(bar.moved, bar.stopped, bar.failed);
  bar.bar.setAttribute("role", "progressbar");
  fill(bar, drain);
  const cell = (text, classes) => { const td = el("td", classes, text); tr.append(td); return td; };
  cell(short(drain.pod)).title = drain.pod;
  cell(drain.trigger ?? "");
  cell("").append(bar.bar);
  cell(`${number(drain.moved)} of ${number(drain.total)}`, "n");
  cell(drain.stopped, "n");
  cell(drain.failed, "n");
  cell(spaced(drain.gapP50), "n");
  cell(spaced(drain.gapMax), "n");
  cell(drain.started ? span(drain.started, drain.ended ?? Date.now() + ahead) : "", "n");
  Object.assign(tr.dataset, { handoff: drain.name, phase: drain.phase, moved: drain.moved, total: drain.total, stopped: drain.stopped, failed: drain.failed,
    gapP50: drain.gapP50 ?? "", gapMax: drain.gapMax ?? "" });
  if (!drain.why) return [tr];
  const why = el("tr"), td = el("td", "why", drain.why);
  td.colSpan = 9;
  why.append(td);
  return [tr, why];
}
