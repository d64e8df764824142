"use strict";

const ask = document.getElementById("ask");
const result = document.getElementById("result");
const known = Array.from(document.querySelectorAll("#known option"), (one) => one.value);
let running = null;

function value(name) {
  const field = document.getElementById(name);
  return field === null ? "" : field.value.trim();
}

function say(message) {
  const line = document.createElement("p");
  line.textContent = message;
  result.replaceChildren(line);
}

function instance() {
  const one = { text: document.getElementById("text").value };
  if (value("pair")) one.pair = document.getElementById("pair").value;
  const target = value("target");
  if (target) one.target = known.length && !known.includes(target) && /^\d{1,6}$/.test(target) ? Number(target) : target;
  return one;
}

async function explain() {
  if (!value("text")) {
    say("Type a text first.");
    return;
  }
  if (running !== null) running.abort();
  const own = (running = new AbortController());
  const headers = { "Content-Type": "application/json" };
  if (value("token")) headers.Authorization = `Bearer ${value("token")}`;
  result.setAttribute("aria-busy", "true");
  try {
    const body = JSON.stringify({ instances: [instance()] });
    const address = `v1/models/${ask.dataset.name}:explain?format=html`;
    const answer = await fetch(address, { method: "POST", headers, body, signal: own.signal });
    if (answer.ok) {
      const source = (await answer.text()).replace(/<style>[^<]*<\/style>/, ""); // page.css has the same rules
      const page = new DOMParser().parseFromString(source, "text/html");
      result.replaceChildren(...page.querySelectorAll("main > article, main > .g"));
    } else {
      say((await answer.json()).error);
    }
  } catch (error) {
    if (error.name === "AbortError") return; // a later text took its place
    say("The service does not answer.");
  }
  if (running === own) result.removeAttribute("aria-busy");
}

ask.addEventListener("submit", (event) => {
  event.preventDefault();
  explain();
});
ask.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.tagName === "TEXTAREA") {
    event.preventDefault();
    explain();
  }
});
