// The live figures: one stream from /ui/status while the page is seen, none while it is hidden.

import { authorization, call, events, Refusal } from "./answer_stream.js";

const byId = (id) => document.getElementById(id);
const WAIT_FIRST_MS = 1000;
const WAIT_LIMIT_MS = 15000;
const KEPT_COUNT = 20;

const firstTokensMs = [];
let key = "";
let current = null;
let isShown = "";

/** Starts to follow the router, with another key if there is one. */
export function follow(newKey) {
  key = newKey;
  current?.abort();
  current = null;
  if (document.hidden) return;
  current = new AbortController();
  keepReading(current.signal);
}

document.addEventListener("visibilitychange", () => follow(key));

/** Notes how long an answer of this page took to begin. */
export function noteFirstToken(durationMs) {
  firstTokensMs.push(durationMs);
  if (firstTokensMs.length > KEPT_COUNT) firstTokensMs.shift();
  const sorted = firstTokensMs.toSorted((a, b) => a - b);
  byId("live-first").textContent = milliseconds(sorted[Math.floor(sorted.length / 2)]);
}

/** A duration in words. */
export function milliseconds(value) {
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(2)} s`;
}

async function keepReading(signal) {
  let waitMs = WAIT_FIRST_MS;
  while (!signal.aborted) {
    try {
      const response = await call("ui/status", { headers: authorization(key), signal });
      for await (const data of events(response)) {
        show(JSON.parse(data));
        waitMs = WAIT_FIRST_MS;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Refusal)) throw error;
      clear(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, waitMs));
    waitMs = Math.min(2 * waitMs, WAIT_LIMIT_MS);
  }
}

function show(load) {
  if (load.error) throw new Refusal(load.error.message);
  const serving = load.replicas.filter((replica) => replica.state === "serving").length;
  const total = sum(load, "total_block_count");
  const kv = total ? percent(sum(load, "leased_block_count") / total) : "–";
  byId("live-running").textContent = load.running_count;
  byId("live-waiting").textContent = load.waiting_count;
  byId("live-rate").textContent = rate(load.generated_tokens_per_s);
  byId("live-kv").textContent = kv;
  byId("live-wait").textContent = milliseconds(1000 * load.expected_wait_s);
  byId("live-line").textContent =
    `${serving}/${load.replicas.length} serving · ${load.running_count} running · ${load.waiting_count} queued`;
  showReplicas(load.replicas);
}

function clear(message) {
  for (const id of ["live-running", "live-waiting", "live-rate", "live-kv", "live-wait"]) byId(id).textContent = "–";
  byId("live-line").textContent = message;
  showReplicas([]);
}

function showReplicas(replicas) {
  // Rewritten only where something changed: a screen reader keeps its place.
  const content = JSON.stringify(replicas);
  if (content === isShown) return;
  isShown = content;
  byId("replicas").replaceChildren(...replicas.map(entry));
}

function entry(replica) {
  const name = element("span", "", replica.id);
  const state = element("span", `state ${replica.state}`, replica.state);
  const head = element("div", "name");
  head.append(name, state);
  const share = replica.total_block_count ? replica.leased_block_count / replica.total_block_count : 0;
  const meter = element("meter", "");
  meter.value = share;
  meter.setAttribute("aria-label", `KV cache of ${replica.id} in use`);
  const words = [
    `${replica.running_count} running`,
    `${replica.waiting_count} queued`,
    `KV ${percent(share)}`,
    `${rate(replica.generated_tokens_per_s)} tokens/s`,
  ];
  if (replica.restart_count) words.push(`came back ${replica.restart_count} times`);
  const item = element("li", "");
  item.append(head, meter, element("div", "load", words.join(" · ")));
  if (replica.detail && replica.detail !== replica.state) item.append(element("div", "load", replica.detail));
  return item;
}

/** Makes an element; its text is only ever text. */
export function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function sum(load, field) {
  return load.replicas.reduce((total, replica) => total + replica[field], 0);
}

function percent(share) {
  return share > 0 && share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`;
}

function rate(value) {
  return value === null ? "–" : value.toFixed(1);
}
