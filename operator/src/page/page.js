// What the feed told. A server's key is namespace/name, a pod's its uid.
const servers = new Map(), boxes = new Map();
let pools = [], pods = [], drains = [], waiting = [], ahead = 0, found = null, pointer = null;

const PHASES = [["Running", "running"], ["HandingOff", "moving"], ["Starting", "starting"], ["Stopping", "stopping"],
  ["Pending", "waiting"], ["Stopped", "waiting"], ["Failed", "failed"]];
const NAMES = { Running: "serving", HandingOff: "handing off", Starting: "starting", Stopping: "stopping", Pending: "waiting", Stopped: "stopped", Failed: "failed" };
const STATES = { NotReady: "not ready", Silent: "agent silent", CannotHost: "cannot host", Cordoned: "cordoned", Ready: "ready", Draining: "draining", Ended: "ended" };
const HOLLOW = new Set(["Pending", "Stopped"]);
const LARGEST = 20, FLIGHT = 700, SETTLE = 300, GLOW = 2600, LABEL = 1500, LEAVE = 900;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const $ = (id) => document.getElementById(id);

function el(tag, classes, text) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  if (text !== undefined) node.textContent = text;
  return node;
}
function set(node, text) { if (node.textContent !== text) node.textContent = text; }
function attr(node, name, value) { if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value); }
const short = (pod) => pod ? pod.slice(pod.lastIndexOf("-") + 1) || pod : "nowhere";
const spaced = (gap) => gap ? gap.replace(/[a-z]+$/, " $&") : "";
const bare = (key) => key.slice(key.indexOf("/") + 1);
const number = (n) => n.toLocaleString("en");
const count = (n, one, many = one + "s") => `${number(n)} ${n === 1 ? one : many}`;
function ms(gap) {
  if (!gap) return null;
  return gap.endsWith("ms") ? parseFloat(gap) : parseFloat(gap) * 1000;
}
function span(from, to) {
  const s = Math.max(0, (to - from) / 1000);
  return s < 10 ? `${s.toFixed(1)} s` : s < 100 ? `${Math.round(s)} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`;
}

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const [phase, name] of PHASES) colours[phase] = style.getPropertyValue(`--${name}`).trim();
  for (const name of ["ink", "soft", "line", "card", "moving"]) colours[name] = style.getPropertyValue(`--${name}`).trim();
}

// --- the feed -----------------------------------------------------------------------------------------------------

function take(frame, fresh) {
  ahead = frame.at - Date.now();
  if (fresh) {
    for (const box of boxes.values()) box.forget();
    servers.clear();
  }
  if (frame.pools) pools = frame.pools;
  if (frame.pods) pods = frame.pods;
  if (frame.drains) drains = frame.drains;
  if (frame.waiting) waiting = frame.waiting;
  boxesFor();
  for (const [key, server] of Object.entries(frame.servers)) {
    const old = servers.get(key);
    if (server) servers.set(key, server); else servers.delete(key);
    if (old && (!server || server.pool !== old.pool)) boxes.get(old.pool)?.remove(key);
    if (server) boxes.get(server.pool)?.put(key, server, old);
  }
  wake();
}

function connect() {
  const feed = new EventSource("feed");
  const link = (text, state) => { set($("link"), text); $("link").className = `link ${state}`; };
  let waits;
  feed.addEventListener("snapshot", (event) => { take(JSON.parse(event.data), true); clearTimeout(waits); link("live", "live"); });
  feed.addEventListener("delta", (event) => take(JSON.parse(event.data), false));
  feed.onopen = () => {
    link("connected", "");
    clearTimeout(waits);
    waits = setTimeout(() => link("this replica does not lead, or has not read all objects yet: the operator's Lease names the pod that leads", ""), 3000);
  };
  feed.onerror = () => {
    clearTimeout(waits);
    link("connection lost, trying again", "lost");
    // The browser tries again by itself, but for a refusal.
    if (feed.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  };
}

// --- a pool -------------------------------------------------------------------------------------------------------

function boxesFor() {
  for (const pool of pools) if (!boxes.has(pool.key)) boxes.set(pool.key, new Box(pool.key));
  for (const [key, box] of boxes) {
    if (pools.some((pool) => pool.key === key)) continue;
    box.root.remove();
    boxes.delete(key);
  }
  pools.forEach((pool, place) => {
    const box = boxes.get(pool.key);
    box.pool = pool;
    if ($("pools").children[place] !== box.root) $("pools").insertBefore(box.root, $("pools").children[place] ?? null);
    box.columnsFor();
  });
}

// --- looking closer -----------------------------------------------------------------------------------------------

function describe(dot) {
  const { server, key } = dot, pod = pods.find((pod) => pod.uid === server.pod), last = server.last;
  const lines = [el("b", "", bare(key)), el("p", "", `${server.type}, ${NAMES[server.phase]}${pod ? ` in ${pod.name}` : ""}, epoch ${server.epoch}`)];
  if (last) {
    const how = last.gap ? `moved in ${spaced(last.gap)}` : last.result.toLowerCase() + (last.reason ? `, ${last.reason}` : "");
    lines.push(el("p", "", `${how}: ${short(last.from)} → ${last.to ? short(last.to) : "store"}, ${span(last.at, Date.now() + ahead)} ago`));
  }
  return lines;
}

function point(box, event) {
  const stage = box.stage.getBoundingClientRect();
  pointer = { box, x: event.clientX - stage.left, y: event.clientY - stage.top };
  wake();
}

function tip() {
  const key = found;
  const box = key ? [...boxes.values()].find((box) => box.dots.has(key)) : pointer?.box;
  const dot = key ? box?.dots.get(key) : pointer && box.at(pointer.x, pointer.y);
  $("tip").hidden = !dot;
  if (!dot) return;
  $("tip").replaceChildren(...describe(dot));
  const stage = box.stage.getBoundingClientRect();
  const left = Math.min(stage.left + dot.x + 14, document.documentElement.clientWidth - $("tip").offsetWidth - 8);
  $("tip").style.left = `${left + scrollX}px`;
  $("tip").style.top = `${stage.top + dot.y + 14 + scrollY}px`;
}

$("find").addEventListener("input", () => {
  const text = $("find").value.trim();
  found = null;
  if (text) {
    const keys = [...servers.keys()];
    found = keys.find((key) => bare(key) === text) ?? keys.find((key) => bare(key).startsWith(text)) ?? keys.find((key) => key.includes(text)) ?? null;
  }
  wake();
});

function legend() {
  const counts = new Map();
  for (const server of servers.values()) counts.set(server.phase, (counts.get(server.phase) ?? 0) + 1);
  const shown = PHASES.filter(([phase]) => phase === "Running" || counts.get(phase));
  const text = shown.map(([phase]) => `${phase}${counts.get(phase) ?? 0}`).join();
  if (legend.text === text) return;
  legend.text = text;
  $("legend").replaceChildren(...shown.map(([phase, name]) => {
    const item = el("li"), swatch = el("span", "swatch");
    if (HOLLOW.has(phase)) swatch.style.border = `2px solid var(--${name})`;
    else swatch.style.background = `var(--${name})`;
    item.append(swatch, `${(counts.get(phase) ?? 0).toLocaleString("en")} ${NAMES[phase]}`);
    return item;
  }));
}

// Whoever listens hears of drains, not of every server, and not all the time.
let toldAt = 0;
function tell(now) {
  if (now - toldAt < 4000) return;
  const text = drains.filter((drain) => !drain.ended).map((drain) => `${short(drain.pod)}: ${progress(drain)}`).join("; ");
  if ($("told").textContent === text) return;
  toldAt = now;
  set($("told"), text);
}

// --- frames: drawn while something moves, and when there is news ---------------------------------------------------

let awake = false;
function wake() {
  if (awake) return;
  awake = true;
  requestAnimationFrame(frame);
}
function frame(now) {
  awake = false;
  let busy = false;
  for (const box of boxes.values()) busy = box.draw(now) || busy;
  if (!boxes.size && !$("pools").children.length) {
    const empty = el("p", "empty", "No pool yet. Make a DurableServerPool, and label pods with ");
    empty.append(el("code", "", "durableserver.io/pool"));
    $("pools").append(empty);
  } else if (boxes.size) $("pools").querySelector(".empty")?.remove();
  legend();
  tip();
  tell(now);
  if (busy) wake();
}

const repaint = () => { readColours(); for (const box of boxes.values()) box.news = box.stale = true; wake(); };
dark.addEventListener("change", repaint);
// Drains under way show how long they take.
setInterval(() => {
  if (!drains.some((drain) => !drain.ended)) return;
  for (const box of boxes.values()) box.news = true;
  wake();
}, 500);
readColours();
connect();
// For the browser's console, and for tests: where each server's dot is on the page.
globalThis.durable = Object.freeze({
  dots: () => [...boxes.values()].flatMap((box) => {
    const stage = box.stage.getBoundingClientRect();
    return [...box.dots.values()].map((dot) => {
      const [x, y, t] = box.where(dot, performance.now());
      return { server: dot.key, pod: dot.uid, x: stage.left + x, y: stage.top + y, flies: t < 1 && !!dot.arcs };
    });
  }),
});
